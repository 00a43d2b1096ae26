"""Our Noise: the published vectors, byte for byte, and messages that were altered, cut, repeated or moved."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm_node.swarm.transport.protocols.noise import TAG_BYTES, Cipher, XXHandshake


@dataclass(frozen=True)
class Vector:
    """``messages``: (payload, bytes on the wire), each side in turn; ``hash``: of the handshake, "" where the
    source does not say it."""

    prologue: str
    keys: tuple[str, str, str, str]  # the initiator's static and ephemeral, then the responder's
    hash: str
    messages: tuple[tuple[str, str], ...]


VECTORS = {
    "cacophony": Vector(  # https://github.com/haskell-cryptography/cacophony, vectors/cacophony.txt
        "4a6f686e2047616c74",
        (
            "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
            "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
            "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
            "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
        ),
        "c8e5f64e846193be2a834104c2a009868d6c9f3bd3c186299888b488b2f1f58e",
        (
            (
                "4c756477696720766f6e204d69736573",
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"
                "4c756477696720766f6e204d69736573",
            ),
            (
                "4d757272617920526f746862617264",
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
                "81cbad1f276e038c48378ffce2b65285e08d6b68aaa3629a5a8639392490e5b9"
                "bd5269c2f1e4f488ed8831161f19b7815528f8982ffe09be9b5c412f8a0db50f"
                "8814c7194e83f23dbd8d162c9326ad",
            ),
            (
                "462e20412e20486179656b",
                "c7195ffacac1307ff99046f219750fc47693e23c3cb08b89c2af808b444850a8"
                "0ae475b9df0f169ae80a89be0865b57f58c9fea0d4ec82a286427402f113e4b6"
                "ae769a1d95941d49b25030",
            ),
            ("4361726c204d656e676572", "96763ed773f8e47bb3712f0e29b3060ffc956ffc146cee53d5e1df"),
            (
                "4a65616e2d426170746973746520536179",
                "3e40f15f6f3a46ae446b253bf8b1d9ffb6ed9b174d272328ff91a7e2e5c79c07f5",
            ),
            (
                "457567656e2042f6686d20766f6e2042617765726b",
                "eb3f3515110702e047a6c9da4478b6ead94873c11c0f2d710ddb3f09fce024b3a58502ae3f",
            ),
        ),
    ),
    "snow": Vector(  # https://github.com/mcginty/snow, tests/vectors/snow.txt
        "5468657265206973206e6f20726967687420616e642077726f6e672e205468657265277320"
        "6f6e6c792066756e20616e6420626f72696e672e",
        (
            "7dec208517a3b81a2861d7a71266d5d6dc944c5a8816634a86fe63198a0148ee",
            "a32daf21e93c0131495ce1d903181fde81cc46937daaeb990bae7c992709421e",
            "4d0aed5098e3b4ef20357e9f686ce66204c792b358da2e475017d6c485304881",
            "4eece0f195d026db035ff987597c429d3ad3bcc2944df37d649528951b2a27c5",
        ),
        "",
        (
            (
                "d03c489139e645d0711a3c9e810d776b46a84912463fafa87b884eebf242dc34",
                "f9fa868ba97ab8a2686deccfaad5a484ee10a5bb85e3d1dce015a84797f92818"
                "d03c489139e645d0711a3c9e810d776b46a84912463fafa87b884eebf242dc34",
            ),
            (
                "d8190a92f7dc0c93dbea9118ba8055751fb7c6590c416ffbd419964132b99a85",
                "8c4e6fdb7d09d501a86f7eca5c234522751706ed409182c05cdf5f827d4dae47"
                "b81c6c5f43b025692c24391eefee725c17d8cb0fbe3e4abb8aedf42c4fd2592d"
                "4ea48ac08989d6ae8b4adae08b2c34087c808c7aa55a63c02b0fab9e93061233"
                "6bd43eaea04d3c670a0a146691aa9cc9d357872320dc735dbc48580cffb553db",
            ),
            (
                "77891b19dcb92ef7c055b672c4a5aa7fdf1c84146b8b303459022729473ce254",
                "933ca6b5ed60df3df66121f0ab49a09e49efa45c613a86a3cecbf4c535cef2f8"
                "3f72b42837b18e3572f2fdc2b74c331e2368a545cef54bdca081678ab0e9dd53"
                "48122459e0c034c851984d88ce610963d43cde6cfe73a67fbd5a63e8bfca96d0",
            ),
            (
                "d7efdf988072881941db045a42882433817555128fbf5663e56081712ec7d212",
                "54ef0ff0629e1aaa7685a2806ab111cba76b52331f2642276736f415868eacb6"
                "9ab2577f3bda0cbf72f879685f6ed25f",
            ),
            (
                "dd7bf01a588bafb52c6cfba952e5d8fe35cc2b3f92b4730ae2474615157345ce",
                "356be70f110306d5c699bb834bb9d58d909e325924dfbec972e406e6f294dc63"
                "e1daebefe8a62a334facc8048ab4ad66",
            ),
        ),
    ),
}
LOW_ORDER = (
    bytes(32),
    bytes([1, *bytes(31)]),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
)
"""Points for which X25519 gives zeros, whatever the other key."""


def key(text: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


def pair() -> tuple[XXHandshake, XXHandshake]:
    return (
        XXHandshake(X25519PrivateKey.generate(), initiator=True),
        XXHandshake(X25519PrivateKey.generate(), initiator=False),
    )


def ciphers() -> tuple[Cipher, Cipher]:
    """What one side sends with, and the other receives with."""
    here, there = pair()
    there.read_message(here.write_message())
    here.read_message(there.write_message())
    there.read_message(here.write_message())
    return here.split()[0], there.split()[1]


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_the_published_vectors(vector: Vector) -> None:
    prologue = bytes.fromhex(vector.prologue)
    ours, our_once, theirs, their_once = map(key, vector.keys)
    here = XXHandshake(ours, initiator=True, prologue=prologue, ephemeral=our_once)
    there = XXHandshake(theirs, initiator=False, prologue=prologue, ephemeral=their_once)
    for turn, (payload, message) in enumerate(vector.messages[:3]):
        writer, reader = (here, there) if turn % 2 == 0 else (there, here)
        assert writer.write_message(bytes.fromhex(payload)).hex() == message
        assert reader.read_message(bytes.fromhex(message)).hex() == payload
    assert here.hash == there.hash
    assert here.hash.hex() == (vector.hash or here.hash.hex())
    assert here.remote_static == theirs.public_key().public_bytes_raw()
    assert there.remote_static == ours.public_key().public_bytes_raw()
    (to_there, from_there), (to_here, from_here) = here.split(), there.split()
    for turn, (payload, message) in enumerate(vector.messages[3:], 3):
        send, receive = (to_there, from_here) if turn % 2 == 0 else (to_here, from_there)
        assert send.encrypt(bytes.fromhex(payload)).hex() == message
        assert receive.decrypt(bytes.fromhex(message)).hex() == payload


def test_each_side_takes_its_turn_only() -> None:
    here, there = pair()
    for out_of_turn in (lambda: here.read_message(b""), there.write_message, here.split):
        with pytest.raises(LocalProtocolError):
            out_of_turn()
    there.read_message(here.write_message())
    with pytest.raises(LocalProtocolError):
        here.write_message()


@pytest.mark.parametrize("at", [0, 31, 32, 47, 48, 60, -1])
@pytest.mark.parametrize("turn", [1, 2])
def test_an_altered_message_ends_the_handshake(turn: int, at: int) -> None:
    here, there = pair()
    there.read_message(here.write_message())
    reader, message = here, there.write_message(b"payload")
    if turn == 2:
        here.read_message(message)
        reader, message = there, here.write_message(b"and payload")
    altered = bytearray(message)
    altered[at] ^= 1
    with pytest.raises(RemoteProtocolError):
        reader.read_message(bytes(altered))
    for use in (lambda: reader.read_message(message), reader.write_message, reader.split):
        with pytest.raises(LocalProtocolError):
            use()


def test_a_handshake_that_was_recorded_is_worth_nothing() -> None:
    here, there = pair()
    first = here.write_message()
    there.read_message(first)
    here.read_message(there.write_message())
    third = here.write_message(b"it is me")
    again = XXHandshake(X25519PrivateKey.generate(), initiator=False)
    again.read_message(first)
    again.write_message()
    with pytest.raises(RemoteProtocolError):
        again.read_message(third)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_keys_of_low_order_are_refused(point: bytes) -> None:
    _, there = pair()
    there.read_message(point)
    with pytest.raises(RemoteProtocolError, match="good for nothing"):
        there.write_message()
    here, _ = pair()
    here.write_message()
    with pytest.raises(RemoteProtocolError, match="good for nothing"):
        here.read_message(point + bytes(64))


@given(st.binary(max_size=200))
def test_any_message_is_read_or_refused(message: bytes) -> None:
    here, there = pair()
    here.write_message()
    with pytest.raises(RemoteProtocolError):
        here.read_message(message)
    try:
        assert there.read_message(message) == message[32:]
    except RemoteProtocolError:
        assert len(message) < 32


def test_messages_that_are_dropped_repeated_or_moved_are_refused() -> None:
    for good, bad in (((), 1), ((0,), 0), ((0,), 2)):
        send, receive = ciphers()
        messages = [send.encrypt(b"%d" % number) for number in range(3)]
        for index in good:
            assert receive.decrypt(messages[index]) == b"%d" % index
        with pytest.raises(RemoteProtocolError):
            receive.decrypt(messages[bad])


def test_messages_that_were_cut_are_refused() -> None:
    for size in range(TAG_BYTES + 5):
        send, receive = ciphers()
        with pytest.raises(RemoteProtocolError):
            receive.decrypt(send.encrypt(b"hello")[:size])
