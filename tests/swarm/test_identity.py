"""Key files, PeerIDs and signatures, compared with hivemind's and py-libp2p's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import RemoteProtocolError, UsageError
from swarm_node.swarm.identity import Identity, is_peer_id, peer_id_of, public_key_of, verify

SEED = bytes(range(32))
PEER_ID = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"  # what py-libp2p 0.8.1 makes of the seed


def test_peer_id_is_the_one_of_libp2p() -> None:
    identity = Identity(SEED)
    assert identity.peer_id == PEER_ID
    assert public_key_of(PEER_ID) == identity.public_bytes
    assert peer_id_of(identity.public_bytes) == PEER_ID


def test_identity_needs_no_hivemind() -> None:
    script = (
        "import sys, swarm_node.swarm.identity; sys.exit('hivemind' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_file_is_created_once_and_private(tmp_path: Path) -> None:
    file = tmp_path / "missing folder" / "identity.key"
    first = Identity.load_or_create(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes()[:4] == bytes.fromhex("08011240")
    assert len(file.read_bytes()) == 68
    assert Identity.load_or_create(file).peer_id == first.peer_id
    assert os.listdir(file.parent) == [file.name]


def test_lax_permissions_are_tightened(tmp_path: Path) -> None:
    file = tmp_path / "identity.key"
    Identity.load_or_create(file)
    file.chmod(0o644)
    Identity.load_or_create(file)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\x08\x00" + data[2:],  # an RSA key says 0 there
        lambda data: data[:10] + bytes([data[10] ^ 1]) + data[11:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "identity.key"
    Identity.load_or_create(file)
    broken = damage(file.read_bytes())
    file.write_bytes(broken)
    with pytest.raises(UsageError, match="damaged") as caught:
        Identity.load_or_create(file)
    assert str(file) in caught.value.message
    assert caught.value.hint
    assert file.read_bytes() == broken  # never overwritten: it may be somebody's only copy


def test_unusable_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "identity.key", tmp_path):
        with pytest.raises(UsageError, match="cannot use the key file") as caught:
            Identity.load_or_create(place)
        assert "--" not in caught.value.hint  # it may be of --identity or of --swarm-key


def test_what_p2pd_is_given_is_a_key_file(tmp_path: Path) -> None:
    identity = Identity.generate()
    (tmp_path / "copy.key").write_bytes(identity.key_file())
    assert Identity.load(tmp_path / "copy.key").peer_id == identity.peer_id


def test_secret_is_not_shown() -> None:
    assert SEED.hex() not in repr(Identity(SEED))
    assert repr(Identity(SEED)) == f"Identity({PEER_ID})"


def test_signature_belongs_to_peer_and_data() -> None:
    identity, other = Identity.generate(), Identity.generate()
    signature = identity.sign(b"data")
    assert len(signature) == 64
    assert verify(identity.peer_id, b"data", signature)
    assert not verify(identity.peer_id, b"Data", signature)
    assert not verify(other.peer_id, b"data", signature)
    assert not verify("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", b"data", signature)
    assert not verify(identity.peer_id, b"data", signature[:-1])
    assert not verify(identity.peer_id, b"data", b"")


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_round_trip(public: bytes) -> None:
    peer_id = peer_id_of(public)
    assert len(peer_id) == 52
    assert peer_id.startswith("12D3KooW")
    assert public_key_of(peer_id) == public


@given(st.text(max_size=80))
def test_other_text_is_no_peer_id(text: str) -> None:
    assert not is_peer_id(text)
    with pytest.raises(RemoteProtocolError):
        public_key_of(text)


def test_changed_character_changes_the_key() -> None:
    for index in range(9, 52):
        changed = PEER_ID[:index] + ("2" if PEER_ID[index] != "2" else "3") + PEER_ID[index + 1 :]
        assert public_key_of(changed) != public_key_of(PEER_ID)
    assert not is_peer_id("1" * 100_000)
