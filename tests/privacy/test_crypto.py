"""Published test vectors through our wrappers."""

import numpy as np
import pytest
from scipy import stats

from fedfields.privacy.secure import Refused, crypto
from fedfields.privacy.secure.crypto import Mask

HEX = bytes.fromhex


def test_x25519_of_rfc_7748_section_6_1():
    alice = HEX("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = HEX("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert crypto.public_key(alice) == HEX("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert crypto.public_key(bob) == HEX("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = HEX("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert crypto.agree(alice, crypto.public_key(bob)) == shared == crypto.agree(bob, crypto.public_key(alice))


LOW = [0, 1, 2**255 - 20, *crypto._LOW_ORDER]


@pytest.mark.parametrize("point", LOW + [2**255 - 19 + point for point in (0, 1)])
def test_keys_of_low_order_are_refused(point):
    public = point.to_bytes(32, "little")
    assert not crypto.canonical(public)
    with pytest.raises(Refused, match="low order"):
        crypto.agree(bytes(range(32)), public)


def test_two_ways_to_write_a_key_are_not_two_keys():
    public = crypto.public_key(bytes(range(32)))
    twin = public[:31] + bytes([public[31] | 128])
    assert crypto.agree(bytes(32), public) == crypto.agree(bytes(32), twin)
    assert crypto.canonical(public)
    assert not crypto.canonical(twin)


def test_hkdf_of_rfc_5869_cases_1_and_3():
    key = HEX("0b" * 22)
    first = crypto.hkdf(key, HEX("000102030405060708090a0b0c"), HEX("f0f1f2f3f4f5f6f7f8f9"), 42)
    third = crypto.hkdf(key, b"", b"", 42)
    assert first == HEX("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    assert third == HEX("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")


def test_parts_of_the_info_cannot_run_into_each_other():
    key = bytes(32)
    assert crypto.derive(key, b"ab", b"c") == crypto.hkdf(
        key, b"", HEX("02000000") + b"ab" + HEX("01000000") + b"c", 32
    )
    assert crypto.derive(key, b"ab", b"c") != crypto.derive(key, b"a", b"bc")


def test_hmac_of_rfc_4231_case_2():
    expected = HEX("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    assert crypto.tag(b"Jefe", b"what do ya want for nothing?") == expected


def test_chacha20_poly1305_of_rfc_8439_section_2_8_2():
    key, nonce = bytes(range(0x80, 0xA0)), HEX("070000004041424344454647")
    associated = HEX("50515253c0c1c2c3c4c5c6c7")
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = crypto.seal(key, text, associated, nonce)
    assert sealed[:16] == HEX("d31a8d34648e60db7b86afbc53ef7ec2")
    assert sealed[-16:] == HEX("1ae10b594f09e26a7e902ecbd0600691")
    assert crypto.unseal(key, sealed, associated, nonce) == text
    assert crypto.unseal(key, sealed, associated + b"!", nonce) is None
    assert crypto.unseal(key, bytes([sealed[0] ^ 1]) + sealed[1:], associated, nonce) is None


def test_aes_256_ctr_of_nist_sp_800_38a_section_f_5_5():
    key = HEX("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    stream = crypto.keystream(key, HEX("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    text = HEX("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    assert stream.update(text) == HEX("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")


def test_a_mask_is_aes_256_of_a_counter_from_zero():
    words = np.zeros(4, "<u4")
    crypto.add_masks(words, [Mask(bytes(32), 1)])
    assert words.tobytes() == HEX("dc95c078a2408989ad48a21492842087")  # AES-256 of zeros under the key zero.


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("size", [1, 7, 16384, 32768, 32769, 70001])
def test_masks_are_added_in_blocks_as_if_at_once(dtype, size):
    start = np.arange(size).astype(dtype)
    words, keys = start.copy(), [bytes([i]) * 32 for i in range(3)]
    crypto.add_masks(words, [Mask(keys[0], 1), Mask(keys[1], -1), Mask(keys[2], 1)])
    a, b, c = (np.frombuffer(crypto.keystream(key).update(bytes(words.nbytes)), dtype) for key in keys)
    assert np.array_equal(words, start + a - b + c)
    crypto.add_masks(words, [Mask(keys[2], -1), Mask(keys[0], -1), Mask(keys[1], 1)])
    assert np.array_equal(words, start)


def test_a_masked_vector_looks_like_noise():
    words = np.zeros(1 << 18, "<u4")
    crypto.add_masks(words, [Mask(bytes(range(32)), 1)])
    octets = np.frombuffer(words.tobytes(), np.uint8)
    assert stats.chisquare(np.bincount(octets, minlength=256)).pvalue > 1e-3
    values = words / 2**32
    serial = np.corrcoef(values[:-1], values[1:])[0, 1] * np.sqrt(values.size)  # Standard normal for noise.
    assert abs(serial) < 3.5


def test_none_of_the_256_bits_of_a_key_is_ignored():
    """Flower folds a seed to 32 bits by XOR, so that swapping two words or repeating one leaves its masks alike."""
    first = {}
    for bit in range(256):
        words = np.zeros(4, "<u4")
        crypto.add_masks(words, [Mask((1 << bit).to_bytes(32, "little"), 1)])
        first[words.tobytes()] = bit
    assert len(first) == 256
