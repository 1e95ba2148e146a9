"""Secure aggregation: a server learns the sum of its clients' reports and nothing else about any of them.

The protocol of Bonawitz et al. (CCS 2017) on the graph of Bell et al. (CCS 2020), as two state machines that exchange
bytes (:class:`Client`, :class:`Server`) and a fixed-point encoding of reports (:class:`FixedPoint`). See
``docs/secure-aggregation.md``.
"""

from fedfields.privacy.secure.client import Client as Client
from fedfields.privacy.secure.errors import Abandoned as Abandoned
from fedfields.privacy.secure.errors import Refused as Refused
from fedfields.privacy.secure.fixed import Encoded as Encoded
from fedfields.privacy.secure.fixed import FixedPoint as FixedPoint
from fedfields.privacy.secure.graph import degree_for as degree_for
from fedfields.privacy.secure.protocol import Settings as Settings
from fedfields.privacy.secure.protocol import Stage as Stage
from fedfields.privacy.secure.server import Server as Server
from fedfields.privacy.secure.server import Total as Total
