"""Damaged and forged archives of both versions: one error, no more memory than a file may claim."""

import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_qareg as qareg
from keras_qareg.export import ArchiveError, load_archive, save_archive
from keras_qareg.export.archive import container
from keras_qareg.export.archive.reading import read_archive
from keras_qareg.export.archive.zipping import deflated
from tests.helpers import ROOT, small_cnn

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)
COUNTS = [300, pytest.param(10_000, marks=pytest.mark.slow)]
FIRST = (ROOT / "tests" / "data" / "version_1.qareg").read_bytes()


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    model = qareg.share_weights(small_cnn(), levels=4)
    file = tmp_path_factory.mktemp("archives") / "model.qareg"
    return save_archive(model, file).read_bytes()


def error_of(content):
    with pytest.raises(ArchiveError) as error:
        load_archive(io.BytesIO(content))
    message = str(error.value)
    assert message.startswith("Expected") and message.count("(file 'a stream')") == 1
    return message


def read_all(content):
    """All tensors, or None where there is an error of archives."""
    try:
        with read_archive(io.BytesIO(content)) as archive:
            return list(archive.all_tensors())
    except ArchiveError:
        return None


def parts_of(whole):
    sections = container.Sections(io.BytesIO(whole))
    return json.loads(sections.manifest), [sections[place] for place in range(len(sections))]


def forged(whole, change):
    """The file with a changed manifest and sections that have sound lengths and digests."""
    manifest, sections = parts_of(whole)
    change(manifest, sections)
    return container.sealed(json.dumps(manifest), sections)


def manifest_of_first():
    """The manifest of the file of version 1, and where its sections begin."""
    stored, _ = struct.unpack_from("<II", FIRST, 12)
    return json.loads(zlib.decompress(FIRST[36 : 36 + stored])), 36 + stored


def forged_first(change):
    """The same of version 1."""
    manifest, start = manifest_of_first()
    change(manifest)
    raw = json.dumps(manifest).encode()
    packed = zlib.compress(raw)
    digest = container.digest(packed, 16)
    head = struct.pack("<8sIII16s", container.MAGIC, 1, len(packed), len(raw), digest)
    return head + packed + FIRST[start:]


def test_damaged_files(second, tmp_path):
    for foreign in (b"", b"PK\x03\x04", b"\x80\x04K\x01.", RNG.bytes(5000), b"\x89KQAREG\n"):
        assert "does not begin as one" in error_of(foreign)
    for whole in (FIRST, second):
        assert "version 7" in error_of(whole[:8] + struct.pack("<I", 7) + whole[12:])
        assert "cut off" in error_of(whole[:-1])
        assert "more bytes after its end" in error_of(whole + b"\0")
        assert "was changed" in error_of(whole[:-1] + bytes([whole[-1] ^ 1]))
        changed = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
        assert "that was changed" in error_of(changed)
    path = tmp_path / "bad.qareg"
    path.write_bytes(second[:-1])
    with pytest.raises(ArchiveError) as error:
        load_archive(path)
    assert str(error.value) == (
        f"Expected a whole archive. Received: sections cut off (file '{path}')"
    )
    with pytest.raises(FileNotFoundError):
        load_archive(tmp_path / "none.qareg")


def test_bombs_of_version_1():
    """Headers and manifests that promise far more than there is, with sound digests."""
    for sizes in ((2**32 - 1, 2**32 - 1), (struct.unpack_from("<I", FIRST, 12)[0], 2**32 - 1)):
        huge = FIRST[:12] + struct.pack("<II", *sizes) + FIRST[20:]
        assert "a header that promises more" in error_of(huge)
    bomb = zlib.compress(b"0" * 50_000_000, 9)
    head = struct.pack("<8sIII16s", container.MAGIC, 1, len(bomb), 1000, container.digest(bomb, 16))
    assert "Expected a manifest of 1000 bytes" in error_of(head + bomb)
    deep = zlib.compress(b"[" * 200_000)
    head = struct.pack(
        "<8sIII16s", container.MAGIC, 1, len(deep), 200_000, container.digest(deep, 16)
    )
    error_of(head + deep)

    def grow(key, value):
        return lambda manifest: manifest["tensors"][0].update({key: value})

    for change in (
        *(grow("shape", shape) for shape in ([10**6, 10**6], [2**70], [-3, 3, 1, -12])),
        *(grow("shape", shape) for shape in ([3.0, 3, 1, 12], [3, 3, 1, 13])),
        *(grow("levels", levels) for levels in (10**9, 3)),
        *(grow(*pair) for pair in (("channels", [10**9]), ("dtype", "object"))),
        *(grow(*pair) for pair in (("coding", "pickle"), ("indices", 99), ("indices", None))),
        lambda manifest: manifest["sections"].append([10**12, "00"]),
        lambda manifest: manifest["sections"].__setitem__(0, [-1, "00"]),
        lambda manifest: manifest.pop("config"),
        lambda manifest: manifest.update(assets=[{"layer": 0}]),
        lambda manifest: manifest.update(tensors=manifest["tensors"][1:]),
        lambda manifest: manifest.update(config=1),
    ):
        error_of(forged_first(change))


def test_bombs_of_version_2(second):
    fields = container.varint(1 << 40)
    assert "promises more" in error_of(second[:20] + fields + second[22:])
    frame = deflated(b"0" * 50_000_000, shared=True)
    for raw in (1000, 50_000_000):
        numbers = b"".join(map(container.varint, (len(frame), raw, 0)))
        index = numbers + frame
        start = struct.pack("<8sI8s", container.MAGIC, 2, container.digest(index, 8))
        error_of(start + container.varint(len(index)) + index)

    def words(old, new):
        return lambda manifest, _: manifest.update(tensors=manifest["tensors"].replace(old, new))

    def section(place, content):
        return lambda _, sections: sections.__setitem__(place, content)

    manifest, sections = parts_of(second)
    assert manifest["tensors"].startswith("@cnn 2/kernel:3,3,1,6* /bias 2/kernel")
    for change in (
        *(
            words("3,3,1,6", sizes)
            for sizes in ("1000000,1000000", "9" * 40, "3,3,1,7", "3,3,6", "")
        ),
        *(
            words("/bias", word)
            for word in ("", "/bias+", "/bias:7", "/bias::object", "/bias:6:int64")
        ),
        *(words("2/", skip) for skip in ("99/", "-2/", "x/", "/")),
        lambda manifest, _: manifest.pop("config"),
        lambda manifest, _: manifest.pop("tensors"),
        lambda manifest, _: manifest.update(float="float64"),
        lambda manifest, _: manifest.update(assets=[[0, "name"]]),
        lambda manifest, _: manifest.update(config={"": "Nothing"}),
        lambda manifest, _: manifest.update(config=[[]] * 5),
        lambda _, sections: sections.append(b""),
        lambda _, sections: sections.pop(),
        *(section(1, sections[1][:size]) for size in (0, 1, 5)),
        *(section(place, sections[place] + b"\1\1\1\1\1") for place in (0, 1)),
        section(1, b"\x08" + sections[1][1:]),
        section(1, sections[1][:1] + b"\xff" + sections[1][2:]),
        section(1, sections[2]),
        section(0, b""),
    ):
        error_of(forged(second, change))
    # The same by layers and files that are not there.
    assert "Expected a model that can be made again" in error_of(
        forged(second, lambda m, s: (m.update(assets=[[99, "x"]]), s.append(b"")))
    )


def sections_of(version, whole):
    """The sections of a file, and all that stands before them."""
    if version == 2:
        parts = parts_of(whole)[1]
    else:
        sizes = [size for size, _ in manifest_of_first()[0]["sections"]]
        ends = np.cumsum(sizes) + len(whole) - sum(sizes)
        parts = [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return whole[: len(whole) - sum(map(len, parts))], parts


def bits(version, whole, random):
    content = bytearray(whole)
    for where in random.integers(0, len(content), random.integers(1, 20)):
        content[where] ^= 1 << random.integers(8)
    return bytes(content)


def some_bytes(version, whole, random):
    start, stop = sorted(random.integers(0, len(whole), 2))
    return whole[:start] + random.bytes(random.integers(0, 100)) + whole[stop:]


def truncation(version, whole, random):
    return whole[: random.integers(0, len(whole))]


def swapped(version, whole, random):
    head, parts = sections_of(version, whole)
    one, other = random.choice(len(parts), 2, replace=False)
    parts[one], parts[other] = parts[other], parts[one]
    return head + b"".join(parts)


def forged_length(version, whole, random):
    """One number of the index is another, and digests are sound."""
    other = random.choice([0, 1, 1 << 31, 1 << 40, 1 << 62, random.integers(1, 5000)])
    if version == 1:

        def change(manifest):
            numbers = [*manifest["sections"], manifest["tensors"][0]["shape"]]
            its = numbers[random.integers(len(numbers))]
            place = 0 if its is not numbers[-1] else random.integers(4)
            its[place] = int(other) + int(its[place] == other)

        return forged_first(change)
    _, sections = parts_of(whole)
    index = container.Cursor(whole[20:])
    index = container.Cursor(index.take(index.varint()))
    numbers = [index.varint() for _ in range(3 + len(sections))]
    numbers[random.integers(len(numbers))] = int(other)
    index = b"".join([*map(container.varint, numbers), index.rest()])
    head = struct.pack("<8sI8s", container.MAGIC, 2, container.digest(index, 8))
    return head + container.varint(len(index)) + index + b"".join(sections)


DAMAGES = (bits, some_bytes, truncation, swapped, forged_length)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("version", [1, 2])
def test_damaged_files_are_errors_and_take_no_memory(version, count, second):
    whole, random = FIRST if version == 1 else second, np.random.default_rng(version)
    tracemalloc.start()
    try:
        for place in range(count):
            damage = DAMAGES[place % len(DAMAGES)]
            content = damage(version, whole, random)
            tracemalloc.reset_peak()
            found = content != whole and read_all(content) is not None
            assert not found, f"{damage.__name__}, {place}"
            assert tracemalloc.get_traced_memory()[1] < 1 << 26, damage.__name__
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
TENSORS = st.text(alphabet="0123456789/:,*+@ kernlfoat", max_size=40)


MANIFESTS = st.dictionaries(
    st.sampled_from(["config", "tensors", "assets", "float", "folded"]), JSON | TENSORS
)
SECTIONS = st.lists(st.binary(max_size=60), max_size=4)


@pytest.mark.parametrize("count", COUNTS)
def test_any_manifest_is_an_error_or_tensors(count, second):
    @settings(max_examples=count, deadline=None)
    @given(MANIFESTS, SECTIONS)
    def check(manifest, sections):
        own, whole = parts_of(second)
        for one, parts in (({**own, **manifest}, whole), (manifest, sections), (own, sections)):
            found = read_all(container.sealed(json.dumps(one), parts))
            assert found is None or sum(array.nbytes for array in found) < 1 << 27

    check()


FIRST_MANIFESTS = st.dictionaries(
    st.sampled_from(["config", "tensors", "assets", "sections"]), JSON
)
FIRST_ENTRIES = st.dictionaries(
    st.sampled_from(
        ["shape", "dtype", "coding", "levels", "table", "channels", "indices", "section"]
    ),
    JSON | st.sampled_from(["raw", "ans", "packed", "grid", "float32", "int64"]),
)


@pytest.mark.parametrize("count", COUNTS)
def test_any_manifest_of_version_1_is_an_error_or_tensors(count):
    @settings(max_examples=count, deadline=None)
    @given(FIRST_MANIFESTS, FIRST_ENTRIES)
    def check(manifest, entry):
        def change(whole):
            whole.update(manifest)
            if "tensors" not in manifest:
                whole["tensors"][0].update(entry)

        found = read_all(forged_first(change))
        assert found is None or sum(array.nbytes for array in found) < 1 << 27

    check()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_section_is_an_error_or_tensors(second, data):
    """Bytes of sections that were changed before their digests were made."""
    manifest, sections = parts_of(second)
    place = data.draw(st.integers(0, len(sections) - 1))
    content = bytearray(sections[place])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    sections[place] = bytes(content)
    found = read_all(container.sealed(json.dumps(manifest), sections))
    assert found is None or len(found) == 6
