"""The packed codecs in C against the plain ones: the same bytes, the same verdicts."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.swarm.codecs import native as native_codec
from swarm_node.swarm.codecs.codec import MAX_MAGNITUDE
from swarm_node.swarm.codecs.kinds import INT8
from swarm_node.swarm.errors import LocalProtocolError, RemoteProtocolError
from swarm_node.swarm.runtime.c_build import NativeUnavailableError, load_library
from swarm_node.swarm.types import MAX_SCALES
from tests.swarm.codecs.codec_cases import codec_of

PACKED = ("int8", "f8", "int8s")
LIMITS = (MAX_MAGNITUDE, 65504.0)
BUILDS = {"AVX2": ("-mno-avx512f",), "SSE2": ("-march=x86-64",)} if platform.machine() == "x86_64" else {}


@pytest.fixture(scope="module", autouse=True)
def _native() -> None:
    if not native_codec.warm_up():
        pytest.skip("no C compiler here")


def on_both_paths(call: Callable[[], object]) -> list[object]:
    """What ``call`` gives, or its error in words, on the plain path and the native one."""
    results: list[object] = []
    for native in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr(native_codec, "_codec", None)
            try:
                results.append(call())
            except (LocalProtocolError, RemoteProtocolError) as error:
                results.append((type(error), str(error)))
    return results


row_values = st.one_of(
    st.floats(width=32),  # with infinities, NaN, subnormals, both zeros
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.5, 127.0, -127.0, 1e-31, 3.4e38]),
    st.integers(-300, 300).map(lambda n: n / 2),  # halves between steps, and many equal magnitudes
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PACKED), st.integers(1, 3), st.integers(1, 90), st.data())
def test_both_paths_write_the_same_bytes(kind: str, tokens: int, width: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(row_values, min_size=1, max_size=tokens * width))
    x = np.resize(np.array(values, np.float32), (tokens, width))  # repeats: ties
    codec = codec_of(kind, width, data.draw(st.integers(0, 9)), data.draw(st.sampled_from((1, 8, 32))))
    plain, native = on_both_paths(lambda: bytes(codec.encode(x)))
    assert plain == native


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("width", [1, 4, 5, 15, 16, 17, 64, 576, 2049, 12288, 65536])
def test_both_paths_write_the_same_bytes_for_real_widths(kind: str, width: int) -> None:
    massive = np.random.default_rng(width).standard_normal((3, width), np.float32)
    massive[:, width // 2] *= 300
    massive[0, width // 3] = 20000.0
    flat = np.array([[0], [1], [1]]) * np.ones(width)
    x = np.concatenate([massive, flat, np.arange(width)[None]], dtype=np.float32)
    rounded = torch.from_numpy(x).to(torch.bfloat16).float().numpy()
    if kind == "int8s" and width > MAX_SCALES:
        return
    codec = codec_of(kind, width)
    for view in (x, x[:, ::-1], x[::2], rounded, x.T.copy().T):
        plain, native = on_both_paths(lambda v=view: bytes(codec.encode(v)))
        assert plain == native


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PACKED), st.integers(1, 3), st.integers(1, 40), st.sampled_from(LIMITS), st.data())
def test_both_paths_read_alike(kind: str, tokens: int, width: int, limit: float, data: st.DataObject) -> None:
    """Well-formed payloads, with a few bytes of each changed at will, as every kind of buffer."""
    x = np.random.default_rng(width).standard_normal((tokens, width), np.float32)
    codec = codec_of(kind, width, data.draw(st.integers(0, 9)), data.draw(st.sampled_from((1, 8, 32))))
    payload = bytearray(codec.encode(x))
    places = st.integers(0, len(payload) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        payload[place] = byte
    for form in (payload, bytes(payload), memoryview(payload), memoryview(bytes(payload))):
        plain, native = on_both_paths(lambda f=form: codec.decode(f, tokens, width, limit))
        if isinstance(plain, np.ndarray):
            assert isinstance(native, np.ndarray)
            assert native.dtype == np.float32
            assert np.array_equal(plain.view(np.int32), native.view(np.int32))
        else:
            assert plain == native
    payload[:] = payload * 1  # no buffer is still held


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("build", BUILDS)
def test_every_instruction_set_writes_and_reads_alike(
    kind: str, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = native_codec.loaded()
    flags = (*native_codec._FLAGS, *BUILDS[build])
    other = native_codec.NativeCodec(load_library("swarm", native_codec._sources(), flags))
    for width in (5, 16, 47, 600):
        codec = codec_of(kind, width)
        x = np.random.default_rng(width).standard_normal((4, width), np.float32)
        x[1:3] = np.rint(x[1:3])  # ties
        x[2:, :: max(1, width // 9)] *= 1000
        payload = bytearray(codec.encode(x))
        monkeypatch.setattr(native_codec, "_codec", other)
        assert bytes(codec.encode(x)) == payload
        payload[-width:] = (np.arange(width) * 37).astype(np.uint8).tobytes()  # codes of all sorts
        others = codec.decode(payload, len(x), width)
        monkeypatch.setattr(native_codec, "_codec", kernels)
        assert np.array_equal(codec.decode(payload, len(x), width).view(np.int32), others.view(np.int32))


@pytest.mark.parametrize("kind", PACKED)
def test_a_large_step_is_the_same_with_the_lock_released(kind: str) -> None:
    codec = codec_of(kind, 40)
    x = np.random.default_rng(1).standard_normal((native_codec.GIL_ROWS * 3, 40), np.float32)
    plain, native = on_both_paths(lambda: bytes(codec.encode(x)))
    assert isinstance(plain, bytes)
    assert plain == native
    read = on_both_paths(lambda: codec.decode(plain, len(x), 40))
    assert np.array_equal(*read)  # type: ignore[arg-type]


def test_without_a_library_the_plain_path_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> None:
        raise NativeUnavailableError("no compiler")

    monkeypatch.setattr(native_codec, "_codec", None)
    monkeypatch.setattr(native_codec, "load_library", none_here)
    assert not native_codec.warm_up()
    assert native_codec.loaded() is None
    assert INT8.decode(INT8.encode(np.ones((2, 8), np.float32)), 2, 8).tolist() == [[1.0] * 8] * 2


def test_ready_once_it_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_codec.is_ready()
    monkeypatch.setattr(native_codec, "_codec", None)
    assert native_codec.is_ready()  # the built library lies in the cache
