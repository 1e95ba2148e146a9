"""Flower's engine: the only file that knows names which Flower does not promise to keep.

An owner's machine and the server speak Flower's Fleet API (HTTP, protobuf, objects in pieces), with TLS and node keys.
The server half is Flower's SuperLink without its other two APIs: in Flower 1.41 these share the port, and anybody who
reaches it could register nodes or start runs of any code. Nobody's code travels here, for there is no app bundle: an
owner's machine runs the fedfields that its owner installed.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.runtime import offline as offline  # isort: split

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Depends, FastAPI, HTTPException, Request
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fedfields.errors import UserError
from fedfields.runtime.flower import GONE, Node

HEARTBEAT = 10.0
"""Seconds between signs of life; a node counts as gone after twice as many without one."""

LARGEST_REQUEST = 16 * 2**20
"""Bytes of one request; objects travel in pieces of 5 MiB."""

TIMEOUT = 30.0
"""Seconds that an owner's machine waits for an answer of the server."""


class Tls(NamedTuple):
    """The server's certificate and its key, PEM files."""

    certificate: Path
    key: Path


# --- the server's side ----------------------------------------------------------------------------------------


class SuperLink:
    """Flower's SuperLink in this process: the Fleet API on one port, for registered nodes only.

    Args:
        roster: public keys of the owners by name.
        host: address to bind.
        port: port to bind; 0 takes a free one.
        tls: certificate and key; None for plain HTTP, which is for tests and loopback.

    Raises:
        UserError: the port is taken, or the certificate cannot be used.
    """

    def __init__(
        self, roster: Mapping[str, ec.EllipticCurvePublicKey], host: str, port: int, tls: Tls | None = None
    ) -> None:
        self._socket = _bound(host, port)
        self.port = int(self._socket.getsockname()[1])
        factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(simulation=False), ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        )
        self._state = factory.state()
        self._numbers = {
            name: self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key_to_bytes(key), 0, name=name)
            for name, key in roster.items()
        }
        run = _begin_run(self._state)
        self._task = int(run.primary_task_id or 0)
        self.grid = DirectGrid(self._state, run)
        settings: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 2}
        settings |= {"ws": "none", "lifespan": "off", "server_header": False}
        if tls is not None:
            settings |= {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.key)}
        try:
            config = uvicorn.Config(_fleet_app(factory), **settings)
            config.load()
        except (OSError, ValueError) as error:
            self._socket.close()
            raise UserError(f"{tls and tls.certificate} cannot be used as a certificate ({error})") from error
        self._server = uvicorn.Server(config)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True),
            threading.Thread(target=self._live, daemon=True),
        ]

    def __enter__(self) -> SuperLink:
        for thread in self._threads:
            thread.start()
        while not self._server.started and self._threads[0].is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join(timeout=10)
        self._socket.close()

    def here(self) -> dict[str, Node]:
        """Who is connected, by name."""
        names = {number: name for name, number in self._numbers.items()}
        found = self._state.get_node_info(node_ids=list(names), statuses=["online"])
        return {names[one.node_id]: Node(one.node_id, one.last_activated_at) for one in found}

    def _live(self) -> None:
        """Tells the state that the run's task is alive, as a server app's process would."""
        while not self._stop.wait(HEARTBEAT):
            self._state.acknowledge_task_heartbeat(self._task)


class DirectGrid(Grid):
    """Flower's grid on a SuperLink in the same process."""

    def __init__(self, state: Any, run: Run) -> None:
        self._state, self._run = state, run
        self._arriving: list[Message] = []

    def set_run(self, run: Run) -> None:
        """Takes another run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Is not used any more, not by Flower either."""
        raise NotImplementedError("make messages with flwr.app.Message")

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are online."""
        return self._state.get_nodes(self._run.run_id)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The same with all that is known of them."""
        return self._state.get_node_info(node_ids=list(self.get_node_ids()))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Messages, and the objects that they consist of, into the state."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        run = self._run.run_id
        with no_object_id_recompute():
            _name(message, message.object_id)
            objects, tree = get_all_nested_objects(message), get_object_tree(message)
            session = self._state.start_session(run)
            stored, missing = self._state.store_message_and_object_tree(
                remove_content_from_message(message), tree, session
            )
            for key in missing:
                self._state.store_object(run, session, key, objects[key].deflate())
        return message.metadata.message_id if stored else ""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies whose objects have all arrived."""
        run = self._run.run_id
        waiting = {one.metadata.reply_to_message_id for one in self._arriving}
        wanted = set(message_ids) - waiting
        if wanted:
            self._arriving += self._state.get_message_res(message_ids=wanted, run_id=run)
        done = [(one, full) for one in self._arriving if (full := self._whole(one)) is not None]
        for one, _ in done:
            self.forget(one.metadata.reply_to_message_id)
        return [full for _, full in done]

    def _whole(self, message: Message) -> Message | None:
        """The reply with its content; None while a piece of it is missing."""
        if message.has_error():
            gone = message.error.code == ErrorCode.NODE_UNAVAILABLE
            return _broken(message, GONE if gone else message.error.reason or "")
        store, key = self._state.object_store, message.metadata.message_id
        try:
            tree = store.get_object_tree(key)
            pieces = {one.object_id: store.get(one.object_id) for one in iterate_object_tree(tree)}
            if not all(pieces.values()):
                return None
            full = inflate_object_from_contents(key, pieces)
        except Exception as error:  # Whatever a node sends must not stop the others.
            return _broken(message, f"malformed ({type(error).__name__})")
        return full if isinstance(full, Message) else _broken(message, "malformed (no message)")

    def forget(self, message_id: str) -> None:
        """Drops a message and its reply, if there is one, with all that they consist of; a later reply is refused."""
        waiting = self._state.get_message_res(message_ids={message_id}, run_id=self._run.run_id)
        replies = [one for one in (*self._arriving, *waiting) if one.metadata.reply_to_message_id == message_id]
        self._state.delete_messages(message_ins_ids={message_id})
        for key in (message_id, *(one.metadata.message_id for one in replies)):
            with suppress(KeyError):  # Of a tree that was never whole.
                self._state.object_store.delete(key)
        self._arriving = [one for one in self._arriving if one.metadata.reply_to_message_id != message_id]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Sends messages, and waits for their replies."""
        waiting, came = {key for key in self.push_messages(messages) if key}, list[Message]()
        until = None if timeout is None else time.monotonic() + timeout
        while waiting and (until is None or time.monotonic() < until):
            for message in self.pull_messages(waiting):
                came.append(message)
                waiting.discard(message.metadata.reply_to_message_id)
            time.sleep(0.02)
        return came


def _begin_run(state: Any) -> Run:
    """A run without an app, whose task is this process."""
    number = state.create_run(
        "fedfields/fedfields", "0", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
    )
    (run,) = state.get_run_info(run_ids=[number])
    state.claim_task(run.primary_task_id)
    state.activate_task(run.primary_task_id)
    TaskIdentity.run_id, TaskIdentity.node_id = number, SUPERLINK_NODE_ID
    TaskIdentity.task_id = run.primary_task_id
    return run


def _fleet_app(factory: LinkStateFactory) -> FastAPI:
    """The Fleet API and nothing else."""
    middleware = [
        Middleware(_Limit),
        Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
        Middleware(ProtobufTranslationMiddleware),
        Middleware(NodeAuthMiddleware),
    ]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, middleware=middleware)
    app.state.linkstate_factory = factory
    app.state.enable_supernode_auth = True
    app.include_router(fleet_router, dependencies=[Depends(_own_name), Depends(_again)])
    return app


def _again(request: Request) -> None:
    """A node that was killed and started again may come back at once."""
    sent = getattr(request.state, "protobuf_request", None)
    if isinstance(sent, ActivateNodeRequest):
        state = request.app.state.linkstate_factory.state()
        number = state.get_node_id_by_public_key(sent.public_key)
        if number is not None:
            state.deactivate_node(number)


def _own_name(request: Request) -> None:
    """A node replies for itself: Flower checks who sends a request, but not whom the messages in it are from."""
    sent = getattr(request.state, "protobuf_request", None)
    if isinstance(sent, PushMessagesRequest) and any(
        message.metadata.src_node_id != sent.node.node_id for message in sent.messages_list
    ):
        raise HTTPException(status_code=403, detail="a message of another node")


class _Limit:
    """Refuses requests that are too large before they are read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit() or int(length) > LARGEST_REQUEST:
                await send({"type": "http.response.start", "status": 413, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)


def check_address(host: str, port: int) -> None:
    """Finds out whether a server could listen there, before anything else is done.

    Raises:
        UserError: it could not.
    """
    _bound(host, port).close()


def _bound(host: str, port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise UserError(f"there is no port {port}; choose a --port from 1 to 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from error


def _name(message: Message, key: str) -> None:
    message.metadata.__dict__["_message_id"] = key


def _broken(message: Message, reason: str) -> Message:
    from flwr.app.error import Error
    from flwr.app.message import make_message

    return make_message(metadata=message.metadata, error=Error(code=0, reason=reason))


# --- an owner's side -------------------------------------------------------------------------------------------


class Gone(Exception):
    """The server does not know this node any more: it was started anew, or took it for lost."""


class Fleet:
    """A node's connection to a SuperLink.

    Args:
        address: host and port.
        key: the node's.
        certificate: PEM text of the authority that signed the server's certificate; None for plain HTTP.

    Raises:
        UserError: that is no certificate.
    """

    def __init__(self, address: str, key: ec.EllipticCurvePrivateKey, certificate: bytes | None) -> None:
        self._key = key
        scheme, signed = "http" if certificate is None else "https", NodeAuthHttpInterceptor(key, key.public_key())
        self._client = FleetHttpClient(f"{scheme}://{address}", interceptors=[signed])
        self._client._client.close()
        # Unlike Flower's own: what is readable goes through no proxy, and nothing goes where a server redirects it.
        self._client._client = httpx.Client(
            verify=_trusting(certificate), timeout=TIMEOUT, trust_env=certificate is not None
        )
        self.number = 0

    def connect(self) -> int:
        """Reports for duty; returns the node's number.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses.
        """
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._key.public_key()), heartbeat_interval=HEARTBEAT
        )
        self.number = self._client.ActivateNode(request).node_id
        TaskIdentity.node_id, TaskIdentity.run_id, TaskIdentity.task_id = self.number, 0, 0
        return self.number

    def leave(self) -> None:
        """Says goodbye, if anybody listens."""
        if self.number:
            with suppress(httpx.HTTPError, RuntimeError):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.number))
        self._client._client.close()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Signs of life while a visit takes its time."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT / 2):
                with suppress(httpx.HTTPError, RuntimeError):
                    self.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=1)

    def beat(self) -> None:
        """One sign of life."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT)
        if not self._client.SendNodeHeartbeat(request).success:
            raise Gone

    def receive(self) -> Message | None:
        """The next message, if there is one.

        Raises:
            Gone: the server does not know this node.
            httpx.HTTPError: the server cannot be reached.
        """
        found = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not found.messages_list:
            return None
        head, tree = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        run = head.metadata.run_id
        try:
            message = pull_and_inflate_object_from_tree(
                tree,
                make_pull_object_fn_protobuf(self._client.PullObject, self._node, run),
                make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, self._node, run),
                return_type=Message,
            )
        except httpx.HTTPError:
            raise
        except Exception:  # The server has taken it back meanwhile, or it is malformed: nothing to answer.
            return None
        _name(message, tree.object_id)
        return message

    def reply(self, message: Message, seconds: float) -> int:
        """Sends a reply; returns the bytes that the server took, 0 if it does not wait for this reply any more."""
        _name(message, message.object_id)
        run, sent = message.metadata.run_id, 0
        with no_object_id_recompute():
            tree: ObjectTree = get_object_tree(message)
            answer = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(message))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                )
            )
            objects, wanted = get_all_nested_objects(message), set(answer.objects_to_push)
            sent = sum(len(objects[key].deflate()) for key in wanted)
            push = make_push_object_fn_protobuf(self._client.PushObject, self._node, run, answer.session_id)
            try:
                push_objects(objects, push, object_ids_to_push=wanted)
            except ObjectPushError:  # The deadline passed while it was on its way.
                return 0
        return sent

    @property
    def _node(self) -> NodeProto:
        return NodeProto(node_id=self.number)


def _trusting(certificate: bytes | None) -> ssl.SSLContext | bool:
    if certificate is None:
        return True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=certificate.decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        raise UserError("what --ca names is no certificate; ask who runs the server for its ca.crt") from error
    return context


def explain(error: httpx.HTTPError, address: str, now: Callable[[], float] = time.time) -> str:
    """In one line, what was wrong with a connection, and what to do."""
    text = str(error)
    if isinstance(error, httpx.HTTPStatusError):
        return _explain_status(error.response, address, now)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.split("CERTIFICATE_VERIFY_FAILED]")[-1].split("(_ssl")[0].strip(" :")
        return (
            f"{address} shows a certificate that does not hold ({reason}); ask who runs it for the current ca.crt, and "
            "use the host name that the certificate was made for"
        )
    if any(word in text for word in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "packet length too long")):
        return f"{address} does not speak TLS; is this the right port, and was the server started with its certificate?"
    if isinstance(error, httpx.RemoteProtocolError) and error.request.url.scheme == "http":
        return f"{address} hung up; if it was started without --plain, leave out --plain here, too, and say --ca ca.crt"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"{address} cannot be reached ({text}); check the address, the port and the network"
    return f"the connection to {address} broke ({type(error).__name__}: {text})"


def _explain_status(response: httpx.Response, address: str, now: Callable[[], float]) -> str:
    skew = _skew(response, now())
    if response.status_code == 401 and skew is not None and not -300 < skew < 5:
        way = "fast" if skew > 0 else "slow"
        return f"this machine's clock is {abs(skew):.0f} s {way}, compared with {address}; set the clock and join again"
    if response.status_code == 401:
        return f"{address} does not accept this owner's key; ask who runs it whether they have your .pub file"
    found = FlowerError.from_json(response.text)
    if found is not None and found.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return f"{address} does not know this owner's key; ask who runs it whether they have your .pub file"
    return (
        f"{address} answered with HTTP status {response.status_code}; is this a fedfields server of the same version?"
    )


def _skew(response: httpx.Response, now: float) -> float | None:
    """Seconds by which this machine's clock is ahead of the server's."""
    from email.utils import parsedate_to_datetime

    try:
        return now - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return None


def hush(file: Path | None = None) -> None:
    """Flower's own log goes to a file, or nowhere; what people should read, we say."""
    handler = logging.NullHandler() if file is None else logging.FileHandler(file, encoding="utf-8", delay=True)
    for name in ("flwr", "uvicorn"):
        log = logging.getLogger(name)
        for old in log.handlers:
            old.close()
        log.setLevel(logging.INFO)  # Debug lines hold whole requests.
        log.handlers, log.propagate = [handler], False


# --- simulations -----------------------------------------------------------------------------------------------


def ray_simulation(server: ServerApp, client: ClientApp, nodes: int, workers: int) -> None:
    """Runs both apps on Flower's simulation engine with Ray until the server's is done.

    Raises:
        UserError: Ray is not installed.
    """
    import importlib.util
    import warnings

    if importlib.util.find_spec("ray") is None:
        raise UserError('a simulation on Flower needs Ray: pip install "fedfields[flower,ray]"')
    from flwr.simulation import run_simulation

    start = {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS")
    config = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    config["init_args"] = {"address": address} if address else start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flower and Ray warn about each other.
        run_simulation(server, client, nodes, backend_config=config)


def node_numbers(grid: Grid, count: int, seconds: float = 60.0) -> list[int]:
    """The nodes of a simulation, once all are there.

    Raises:
        UserError: they are not after so many seconds.
    """
    until = time.monotonic() + seconds
    while len(found := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > until:
            raise UserError(f"only {len(found)} of {count} simulated clients have started after {seconds:g} s")
        time.sleep(0.05)
    return found
