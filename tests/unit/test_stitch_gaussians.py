"""The gaussians and their two file formats."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stitch.errors import FileUnreadable
from stitch.gaussians import Gaussians
from stitch.ply import PlyFile, read_ply, write_ply, writing_ply
from stitch.sim3 import transform_gaussians
from stitch.splat import write_splat
from tests.stitch_world import random_gaussians, random_sim3

FIELDS = ("means", "scales", "quats", "opacities", "sh0", "shN")


def same(a: Gaussians, b: Gaussians) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def parse_ply(path: Path) -> tuple[list[str], np.ndarray]:
    """Column names and values by the format's definition, independent of the reader."""
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("property float")]
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[2])
    values = np.array(struct.unpack(f"<{count * len(names)}f", body)).reshape(count, len(names))
    return names, values


def test_shapes_that_disagree_are_refused() -> None:
    good = random_gaussians(np.random.default_rng(0), 5, 1)
    with pytest.raises(ValueError, match="quats"):
        Gaussians(good.means, good.scales, good.quats[:4], good.opacities, good.sh0, good.shN)
    with pytest.raises(ValueError, match="shN"):
        Gaussians(
            good.means, good.scales, good.quats, good.opacities, good.sh0, np.zeros((5, 4, 3))
        )


def test_a_changed_copy_of_rows_of_a_file_is_what_is_written(tmp_path: Path) -> None:
    """Blocks are views of the file's rows, which a writer takes as they are."""
    gaussians = random_gaussians(np.random.default_rng(5), 40, 2)
    write_ply(tmp_path / "one.ply", gaussians)
    (block,) = PlyFile.open(tmp_path / "one.ply").blocks()
    assert block.table is not None and same(block, gaussians)
    moved = dataclasses.replace(block, means=block.means + 1)
    write_ply(tmp_path / "two.ply", moved.select(np.arange(40) > 9))
    again = read_ply(tmp_path / "two.ply")
    assert np.array_equal(again.means, gaussians.means[10:] + 1)
    assert np.array_equal(again.shN, gaussians.shN[10:])


def test_rows_of_a_file_turn_as_the_same_arrays_do_and_their_normals_go(tmp_path: Path) -> None:
    gaussians = random_gaussians(np.random.default_rng(6), 1500, 3)
    table = gaussians.copied().table
    assert table is not None
    table[:, 3:6] = 7.0
    sim3 = random_sim3(np.random.default_rng(7))
    turned = transform_gaussians(Gaussians.of_table(table), sim3)
    assert same(turned, transform_gaussians(gaussians, sim3))
    assert turned.table is not None and not turned.table[:, 3:6].any()
    assert (table[:, 3:6] == 7.0).all() and same(Gaussians.of_table(table), gaussians)


def test_npz_round_trip_and_a_clear_line_for_other_files(tmp_path: Path) -> None:
    gaussians = random_gaussians(np.random.default_rng(1), 50, 2)
    gaussians.save_npz(tmp_path / "g.npz")
    assert same(Gaussians.load_npz(tmp_path / "g.npz"), gaussians)
    assert [path.name for path in tmp_path.iterdir()] == ["g.npz"]
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(FileUnreadable, match=r"text\.npz"):
        Gaussians.load_npz(tmp_path / "text.npz")


@given(count=st.integers(0, 40), degree=st.integers(0, 3), seed=st.integers(0, 1000))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ply_round_trip_is_exact(tmp_path: Path, count: int, degree: int, seed: int) -> None:
    gaussians = random_gaussians(np.random.default_rng(seed), count, degree)
    write_ply(tmp_path / "g.ply", gaussians)
    assert same(read_ply(tmp_path / "g.ply"), gaussians)


def test_ply_columns_are_those_of_the_inria_code(tmp_path: Path) -> None:
    gaussians = random_gaussians(np.random.default_rng(2), 7, 3)
    write_ply(tmp_path / "g.ply", gaussians)
    names, values = parse_ply(tmp_path / "g.ply")
    assert names == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(45)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    column = dict(zip(names, values.T, strict=True))
    assert np.array_equal(column["f_rest_0"], gaussians.shN[:, 0, 0])
    assert np.array_equal(column["f_rest_14"], gaussians.shN[:, 14, 0])
    assert np.array_equal(column["f_rest_17"], gaussians.shN[:, 2, 1])
    assert np.array_equal(column["f_rest_44"], gaussians.shN[:, 14, 2])
    assert np.array_equal(column["rot_0"], gaussians.quats[:, 0])
    assert not column["nx"].any()


def test_parts_of_lower_degree_are_padded_with_zero_bands(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    parts = [random_gaussians(rng, 4, 1), random_gaussians(rng, 3, 2)]
    with writing_ply(tmp_path / "g.ply", 2) as writer:
        for part in parts:
            writer.write(part)
    merged = read_ply(tmp_path / "g.ply")
    assert merged.sh_degree == 2
    assert np.array_equal(merged.shN[:4, :3], parts[0].shN)
    assert not merged.shN[:4, 3:].any()
    assert np.array_equal(merged.shN[4:], parts[1].shN)


def test_an_error_between_the_parts_leaves_no_file(tmp_path: Path) -> None:
    good = random_gaussians(np.random.default_rng(4), 4, 0)
    with (
        pytest.raises(ValueError, match="3 coefficients above band 0 in a PLY of 0"),
        writing_ply(tmp_path / "g.ply", 0) as writer,
    ):
        writer.write(good)
        writer.write(random_gaussians(np.random.default_rng(4), 4, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_read_in_blocks_of_any_size(tmp_path: Path) -> None:
    gaussians = random_gaussians(np.random.default_rng(8), 23, 3)
    write_ply(tmp_path / "g.ply", gaussians)
    file = PlyFile.open(tmp_path / "g.ply")
    assert (file.count, file.sh_degree) == (23, 3)
    everything = np.arange(23)
    for rows in (1, 7, 23, 100):
        start = 0
        for block in file.blocks(rows):
            assert same(block, gaussians.select(everything[start : start + rows]))
            start += len(block)
        assert start == 23


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "g.ply"
    write_ply(path, random_gaussians(np.random.default_rng(9), 23, 0))
    file = PlyFile.open(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileUnreadable, match=r"g\.ply: was cut short"):
        file.read()


def test_extra_properties_and_elements_are_skipped(tmp_path: Path) -> None:
    gaussians = random_gaussians(np.random.default_rng(5), 9, 1)
    write_ply(tmp_path / "g.ply", gaussians)
    names, values = parse_ply(tmp_path / "g.ply")
    row = np.dtype([("seen", "u1"), *((name, "<f4") for name in names), ("depth", "<f8")])
    table = np.zeros(9, row)
    for name, column in zip(names, values.T, strict=True):
        table[name] = column
    header = ["ply", "format binary_little_endian 1.0", "comment made elsewhere"]
    header += ["element vertex 9", "property uchar seen"]
    header += [f"property float32 {name}" for name in names]
    header += ["property double depth", "element chunk 0", "property list uchar int x"]
    path = tmp_path / "extra.ply"
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + table.tobytes())
    assert same(read_ply(path), gaussians)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-10], "cut short, 10 bytes"),
        (lambda data: b"\0" + data, "not a PLY file"),
        (lambda data: data.replace(b"float opacity", b"float opacitx"), "opacity is missing"),
        (lambda data: data.replace(b"binary_little_endian", b"ascii"), "only binary"),
        (lambda data: data.replace(b"float f_rest_8\n", b"float f_last\n"), "8 f_rest"),
        (lambda data: data.replace(b"float x", b"list x y"), "unknown type"),
        (lambda data: data[:200], "no end"),
    ],
)
def test_damaged_ply_ends_in_one_clear_line(tmp_path: Path, damage: object, says: str) -> None:
    path = tmp_path / "g.ply"
    write_ply(path, random_gaussians(np.random.default_rng(6), 20, 1))
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileUnreadable, match=says) as caught:
        read_ply(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ply_of_another_tool(real_data: Path, tmp_path: Path) -> None:
    """4,721 gaussians of degree 3 with an extra property, bounding box as its source notes."""
    gaussians = read_ply(real_data / "splats" / "fruit_drops" / "fruit_drops_minimal.ply")
    assert (len(gaussians), gaussians.sh_degree) == (4721, 3)
    assert np.allclose(gaussians.means.min(axis=0), [0.49, -0.01, -2.25], atol=0.01)
    assert np.allclose(gaussians.means.max(axis=0), [1.0, 0.25, -2.02], atol=0.01)
    write_ply(tmp_path / "again.ply", gaussians)
    assert same(read_ply(tmp_path / "again.ply"), gaussians)


def test_splat_fields_decoded_by_hand(tmp_path: Path) -> None:
    gaussians = Gaussians(
        means=[[1, 2, 3], [4, 5, 6]],
        scales=np.log([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]]),
        quats=[[2, 0, 0, 0], [0, 0, 0, -3]],
        opacities=[0.0, 20.0],
        sh0=[[0, 1, -9], [9, 0, 0]],
        shN=np.ones((2, 3, 3)),
    )
    write_splat(tmp_path / "g.splat", gaussians)
    data = (tmp_path / "g.splat").read_bytes()
    assert len(data) == 64
    large, small = (struct.unpack("<6f8B", data[i : i + 32]) for i in (0, 32))
    assert large[:6] == pytest.approx((4, 5, 6, 1, 2, 3), rel=1e-6)
    assert large[6:] == (255, 128, 128, 255, 128, 128, 128, 0)
    assert small[:6] == pytest.approx((1, 2, 3, 0.1, 0.2, 0.3), rel=1e-6)
    assert small[6:10] == (128, round((0.5 + 0.28209479) * 255), 0, 128)
    assert small[10:] == (255, 128, 128, 128)


def test_splat_is_sorted_by_volume_times_opacity(tmp_path: Path) -> None:
    gaussians = random_gaussians(np.random.default_rng(7), 300, 0)
    write_splat(tmp_path / "g.splat", gaussians)
    rows = np.frombuffer((tmp_path / "g.splat").read_bytes(), np.uint8).reshape(300, 32)
    first = rows[:, :12].copy().view("<f4")
    weight = {
        mean.tobytes(): np.exp(scale.astype(float).sum()) / (1 + np.exp(-float(opacity)))
        for mean, scale, opacity in zip(
            gaussians.means, gaussians.scales, gaussians.opacities, strict=True
        )
    }
    order = [weight[mean.tobytes()] for mean in first]
    assert order == sorted(order, reverse=True)
