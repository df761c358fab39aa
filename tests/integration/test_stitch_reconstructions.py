"""Sidecars of real COLMAP models, and registration of two vehicles that cross."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from stitch.errors import FileUnreadable
from stitch.from_model import from_reconstruction
from stitch.identical import identical
from stitch.register import register
from stitch.score import Thresholds, judge
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3, umeyama

FRAME_STEP = 15  # of 30 fps video
IMAGE_WIDTH = 480


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[pycolmap.Reconstruction, Path]:
    """A model with its database, as COLMAP's own tests make them."""
    path = tmp_path_factory.mktemp("colmap") / "database.db"
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs = 1
    options.num_frames_per_rig = 6
    options.num_points3D = 80
    with pycolmap.Database.open(str(path)) as database:
        model = pycolmap.synthesize_dataset(options, database)
    return model, path


def test_sidecar_holds_what_the_model_holds(
    synthetic: tuple[pycolmap.Reconstruction, Path],
) -> None:
    model, database_path = synthetic
    images = sorted(model.images.values(), key=lambda image: image.name)
    first, last = images[0].name, images[-1].name
    sidecar = from_reconstruction(
        model,
        database_path,
        times={first: 1.5},
        gravity={last: (0.0, 1.0, 0.0)},
        gps={first: (45.0, 9.0, -3.0)},
        quality={"mapper": "global"},
    )
    assert sidecar.keyframe_names == tuple(image.name for image in images)
    assert np.allclose(sidecar.centres(), [image.projection_center() for image in images])
    assert sidecar.keyframe_time_s[0] == 1.5
    assert np.isnan(sidecar.keyframe_time_s[1:]).all()
    assert sidecar.gravity[-1].tolist() == [0.0, 1.0, 0.0]
    assert np.isnan(sidecar.gravity[0]).all()
    assert sidecar.gps[0].tolist() == [45.0, 9.0, -3.0]
    assert sidecar.quality["mapper"] == "global"

    pose = Rotation.from_quat(np.roll(sidecar.rotations[0], -1))
    seen = [p.point3D_id for p in images[0].points2D if p.has_point3D()]
    depths = [(pose.apply(model.points3D[i].xyz) + sidecar.translations[0])[2] for i in seen]
    assert sidecar.median_depth == pytest.approx(float(np.median(depths)), rel=0.2)

    rows = {tuple(np.float32(p.xyz)): p for p in model.points3D.values()}
    assert len(sidecar.points) == len(rows)
    with pycolmap.Database.open(str(database_path)) as database:
        for index in (0, 20, 50):
            point = rows[tuple(sidecar.points[index])]
            mean = np.mean(
                [
                    np.array(database.read_descriptors(e.image_id).data)[e.point2D_idx]
                    for e in point.track.elements
                ],
                axis=0,
            )
            expected = np.minimum(512.0 * mean / np.linalg.norm(mean), 255.0)
            assert np.abs(sidecar.descriptors[index] - expected).max() <= 0.51
            assert sidecar.track_length[index] == point.track.length()


def test_reconstructions_of_the_same_files_know_their_keypoints(
    synthetic: tuple[pycolmap.Reconstruction, Path], tmp_path: Path
) -> None:
    model, database = synthetic
    other = pycolmap.Reconstruction(model)
    names = sorted(image.name for image in model.images.values())
    for number, name in enumerate(names):
        picture = pycolmap.Bitmap.from_array(np.full((90, 160, 3), 40 * number, np.uint8))
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        assert picture.write(str((tmp_path / name).with_suffix(".png")))
        (tmp_path / name).write_bytes((tmp_path / name).with_suffix(".png").read_bytes())
    first = next(image for image in other.images.values() if image.name == names[0])
    other.deregister_frame(first.frame_id)
    made = [
        from_reconstruction(m, database, images=tmp_path, times={}, gravity={}, gps={}, quality={})
        for m in (model, other)
    ]
    a, b = made
    pairs = identical(b, a)
    assert len(pairs) == len(b.points)
    assert np.allclose(b.points[pairs[:, 0]], a.points[pairs[:, 1]])
    assert a.key_counts.tolist() == a.track_length.tolist()
    shown = a.thumbnail(3)
    assert shown is not None
    assert shown[0] == 3
    assert shown[1][:2] == b"\xff\xd8"  # a JPEG
    unseen = from_reconstruction(model, database, times={}, gravity={}, gps={}, quality={})
    assert len(identical(unseen, unseen)) == 0
    assert unseen.thumbnail(0) is None


def test_a_database_of_other_images_is_refused(
    synthetic: tuple[pycolmap.Reconstruction, Path], tmp_path: Path
) -> None:
    model, _ = synthetic
    with pycolmap.Database.open(str(tmp_path / "other.db")):
        pass
    with pytest.raises(FileUnreadable, match=r"other\.db: image \d+ lacks"):
        from_reconstruction(model, tmp_path / "other.db", times={}, gravity={}, gps={}, quality={})


def test_a_model_without_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no 3D points"):
        from_reconstruction(
            pycolmap.Reconstruction(), tmp_path / "x.db", times={}, gravity={}, gps={}, quality={}
        )


def reconstruct(video: Path, folder: Path) -> Sidecar:
    """A cheap reconstruction of a video, as the stage before would leave it."""
    frames, database = folder / "frames", folder / "database.db"
    frames.mkdir(parents=True)
    subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-i", str(video), "-fps_mode", "vfr", "-q:v", "2"),
            *("-vf", f"select=not(mod(n\\,{FRAME_STEP})),scale={IMAGE_WIDTH}:-2"),
            str(frames / "f%06d.jpg"),
        ],
        check=True,
    )
    pycolmap.set_random_seed(0)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_PINHOLE"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads = 2
    extraction.sift.max_num_features = 1200
    extraction.sift.first_octave = 0
    pycolmap.extract_features(
        database,
        frames,
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = 2
    pairing = pycolmap.SequentialPairingOptions()
    pairing.overlap = 4
    pairing.quadratic_overlap = False
    pycolmap.match_sequential(
        database, matching_options=matching, pairing_options=pairing, device=pycolmap.Device.cpu
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = 2
    options.random_seed = 0
    options.multiple_models = False
    options.mapper.init_min_tri_angle = 8
    models = pycolmap.incremental_mapping(database, frames, folder, options=options)
    model = max(models.values(), key=lambda found: found.num_reg_images())
    return from_reconstruction(model, database, times={}, gravity={}, gps={}, quality={})


def to_metres(sidecar: Sidecar, truth: Path) -> Sim3:
    """Frame of a reconstruction to the world, from exact camera positions and orientations.

    Three points of every camera, so that a straight path fixes the roll too.
    """
    frames = json.loads(truth.read_text())["frames"]
    index = [(int(name[1:7]) - 1) * FRAME_STEP for name in sidecar.keyframe_names]
    centres = np.array([frames[i]["C"] for i in index])
    axes = np.array([frames[i]["R_wc"] for i in index])
    own_axes = Rotation.from_quat(np.roll(sidecar.rotations, -1, axis=1)).inv().as_matrix()
    size = np.ptp(centres, axis=0).max() / np.ptp(sidecar.centres(), axis=0).max()
    own = np.concatenate([sidecar.centres() + own_axes[:, :, k] / size for k in range(3)])
    return umeyama(own, np.concatenate([centres + axes[:, :, k] for k in range(3)]))


def test_two_vehicles_that_cross_register_to_the_truth(real_data: Path, tmp_path: Path) -> None:
    """Other camera, other altitude, other heading, other water colour; 1 % of the extent."""
    folder = real_data / "synth_seabed"
    a = reconstruct(folder / "A1.mp4", tmp_path / "A1")
    b = reconstruct(folder / "B1.mp4", tmp_path / "B1")
    assert min(len(a.keyframe_names), len(b.keyframe_names)) >= 20
    found = register(1, b, 0, a, 0.85)
    verdict = judge(found, Thresholds(min_inliers=12, min_share=0.2, min_hull_share=0.1))
    assert verdict.accepted, verdict.reason
    assert found.sim3 is not None
    world_a, world_b = (to_metres(s, folder / f"{n}.json") for s, n in ((a, "A1"), (b, "B1")))
    error = world_a.apply(found.sim3.apply(b.points)) - world_b.apply(b.points)
    extent = np.linalg.norm(np.ptp(world_b.apply(b.centres()), axis=0))
    assert np.sqrt((error**2).sum(axis=1).mean()) < 0.01 * extent
