"""One step of structure from motion, in a process of its own: everything that calls pycolmap.

`python -m worker_agent.stages.sfm_mapping STEP REQUEST` reads a `Request` (JSON), works on the
database it names and writes its answer (JSON) to the request's `answer` path. COLMAP can abort the
whole interpreter, so the stage starts this as a child and survives it. Lines on stdout
("registered N") are progress.
"""

from __future__ import annotations

import ctypes
import json
import math
import resource
import shutil
import signal
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker_agent.durable import write_json

__all__ = ["STEPS", "Request", "main"]

MEBIBYTE = 1 << 20
MIN_TRIANGULATION_DEG = 4.0  # forward motion under water never reaches COLMAP's 16
MAX_FORWARD_MOTION = 1.0
FIRST_OCTAVE = 0  # COLMAP's -1 doubles the picture first: four times the cost, no more frames
STRONG_OCTAVE = -1  # for frames that did not register with fewer, larger features
STRONG_FEATURES = 2.0  # times as many
STRONG_PEAK = 0.5  # times COLMAP's threshold: what little contrast murk leaves
IMPOSSIBLE_PX = 1e6
MIN_INLIERS = 15  # of a pair that counts as verified, as for the mappers


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What every step is told; paths are absolute."""

    database: str
    images: str
    work: str  # models go under <work>/[strong_]<pairs>_<mapper>/
    answer: str
    names: list[str]
    camera: dict[str, Any]  # of the manifest
    max_features: int
    max_image_size: int
    overlap: int
    seed: int
    threads: int
    memory_limit_mib: int | None
    focal_uncertainty: float  # of a focal length that was given, over itself
    patience: float = 1.0  # with a step that does not get on: `sfm_liveness`
    strong: bool = False  # more and weaker features, for frames that did not register without
    masks: str = ""  # directory of <image name>.png, black where features do not count
    pairs: str = "sequential"  # | exhaustive: what the matches were made from
    accepted: str = ""  # finish: the model to publish
    drop: list[str] | None = None  # finish: images to take out of it
    manifest: str = ""  # finish: for the sidecar's times, gravity and GPS
    model: str = ""  # finish: where the accepted model goes
    registration: str = ""  # finish: where the sidecar goes
    quality: dict[str, float | int | str] | None = None  # finish: goes into the sidecar


def main(arguments: list[str]) -> int:
    step, path = arguments
    request = Request(**json.loads(Path(path).read_text()))
    _bind_to_parent()
    if request.memory_limit_mib is not None:
        limit = request.memory_limit_mib * MEBIBYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answer = STEPS[step](request)
    write_json(Path(request.answer), answer, this_boot=True)
    return 0


def _bind_to_parent() -> None:
    """Die with the stage, also when it is killed hard (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _pycolmap(request: Request) -> Any:
    import pycolmap  # here, so that the memory limit already holds

    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    pycolmap.set_random_seed(request.seed)
    return pycolmap


def extract(request: Request) -> dict[str, Any]:
    """SIFT features of every image, one camera for all. Images done before are skipped."""
    pc = _pycolmap(request)
    reader = pc.ImageReaderOptions()
    if Path(request.database).is_file():
        _go_on(pc, request, reader)
    reader.camera_model = request.camera["model"]
    if request.camera["prior_focal"]:
        reader.camera_params = ",".join(repr(float(v)) for v in request.camera["params"])
    else:
        longer = max(request.camera["width"], request.camera["height"])
        reader.default_focal_length_factor = request.camera["params"][0] / longer
    options = pc.FeatureExtractionOptions()
    options.num_threads = request.threads
    options.max_image_size = request.max_image_size
    options.sift.max_num_features = request.max_features
    options.sift.first_octave = FIRST_OCTAVE
    if request.strong:
        options.sift.max_num_features = round(STRONG_FEATURES * request.max_features)
        options.sift.first_octave = STRONG_OCTAVE
        options.sift.peak_threshold *= STRONG_PEAK
    if request.masks:
        reader.mask_path = request.masks
    pc.extract_features(
        request.database,
        request.images,
        image_names=request.names,
        camera_mode=pc.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=options,
        device=pc.Device.cpu,
    )
    return {}


def _go_on(pc: Any, request: Request, reader: Any) -> None:
    """Else COLMAP would give the images that are left a second camera."""
    with pc.Database.open(request.database) as database:
        if database.num_keypoints():
            (camera,) = database.read_all_cameras()
            reader.existing_camera_id = camera.camera_id
            return
    for path in Path(request.database).parent.glob(f"{Path(request.database).name}*"):
        path.unlink()  # its camera may be there in part


def match(request: Request) -> dict[str, Any]:
    """Match and verify pairs; pairs done before are skipped. Answers with `MatchFacts`."""
    pc = _pycolmap(request)
    matching = pc.FeatureMatchingOptions()
    matching.num_threads = request.threads
    verification = pc.TwoViewGeometryOptions()
    verification.ransac.random_seed = request.seed
    if request.pairs == "exhaustive":
        pc.match_exhaustive(
            request.database,
            matching_options=matching,
            verification_options=verification,
            device=pc.Device.cpu,
        )
    else:
        pairing = pc.SequentialPairingOptions()
        pairing.overlap = request.overlap
        pairing.quadratic_overlap = True  # distances 1, 2, 4, ..: near pairs and far returns
        pairing.num_threads = request.threads
        pc.match_sequential(
            request.database,
            matching_options=matching,
            pairing_options=pairing,
            verification_options=verification,
            device=pc.Device.cpu,
        )
    return _match_facts(pc, request)


def _match_facts(pc: Any, request: Request) -> dict[str, Any]:
    import numpy as np

    longer = max(request.camera["width"], request.camera["height"])
    with pc.Database.open(request.database) as database:
        keypoints = {
            image.image_id: database.read_keypoints(image.image_id)[:, :2]
            for image in database.read_all_images()
        }
        pairs, geometries = database.read_two_view_geometries()
        planar = {
            pc.TwoViewGeometryConfiguration.PLANAR,
            pc.TwoViewGeometryConfiguration.PANORAMIC,
            pc.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC,
        }
        flat = 0
        shifts: list[float] = []
        for pair, geometry in zip(pairs, geometries, strict=True):
            inliers = np.asarray(geometry.inlier_matches)
            if len(inliers) < MIN_INLIERS:
                continue
            flat += pc.TwoViewGeometryConfiguration(geometry.config) in planar
            first, second = pc.pair_id_to_image_pair(pair)
            moved = keypoints[first][inliers[:, 0]] - keypoints[second][inliers[:, 1]]
            shifts.append(float(np.median(np.linalg.norm(moved, axis=1))))
    return {
        "images": len(keypoints),
        "keypoints_median": statistics.median(len(k) for k in keypoints.values()),
        "verified_pairs": len(shifts),
        "motion_share": max(shifts, default=0.0) / longer,
        "planar_share": flat / max(1, len(shifts)),
    }


def map_global(request: Request) -> dict[str, Any]:
    """Global mapping (GLOMAP): registers forward-motion clips that incremental mapping loses."""
    pc = _pycolmap(request)
    options = pc.GlobalPipelineOptions()
    options.num_threads = request.threads
    options.random_seed = request.seed
    out = _empty(_models(request, "global"))
    models = pc.global_mapping(request.database, request.images, str(out), options=options)
    return _largest(request, models, "global", out)


def map_incremental(request: Request) -> dict[str, Any]:
    """Incremental mapping, with an initial pair that forward motion can offer."""
    pc = _pycolmap(request)
    options = pc.IncrementalPipelineOptions()
    options.num_threads = request.threads
    options.random_seed = request.seed
    options.min_model_size = 3
    options.mapper.init_min_tri_angle = MIN_TRIANGULATION_DEG
    options.mapper.init_max_forward_motion = MAX_FORWARD_MOTION
    out = _empty(_models(request, "incremental"))
    count = 0

    def next_image() -> None:
        nonlocal count
        count += 1
        print(f"registered {count}", flush=True)

    models = pc.incremental_mapping(
        request.database,
        request.images,
        str(out),
        options=options,
        next_image_callback=next_image,
    )
    return _largest(request, models, "incremental", out)


def _models(request: Request, mapper: str) -> Path:
    return Path(request.work) / f"{'strong_' * request.strong}{request.pairs}_{mapper}"


def finish(request: Request) -> dict[str, Any]:
    """Publish the accepted model without its unsupported images, upright and metric where that is
    known, coloured, and its sidecar."""
    pc = _pycolmap(request)
    from stitch.from_model import from_reconstruction
    from worker_agent.stages.sfm_georeference import place
    from worker_agent.stages.sfm_lens import fitted
    from worker_agent.stages.sfm_links import links
    from worker_agent.stages.sfm_positions import located
    from worker_agent.stages.sfm_refine import refine

    model = pc.Reconstruction(request.accepted)
    unwanted = set(request.drop or ())
    for image in list(model.images.values()):
        if image.name in unwanted and image.has_pose:
            model.deregister_frame(image.frame_id)
    model.tear_down()  # of what has no pose
    refined = refine(model, Path(request.images))
    rows = json.loads(Path(request.manifest).read_text())["frames"]
    fit = fitted(
        pc,
        model,
        given=_given_lens(request),
        threads=request.threads,
        locate=lambda model: located(pc, model, rows),
    )
    model = fit.model
    # An observation behind its camera has the largest number there is as its error.
    for key in [key for key, point in model.points3D.items() if not point.error < IMPOSSIBLE_PX]:
        model.delete_point3D(key)
    model.extract_colors_for_all_images(request.images, num_threads=request.threads)
    world = place(pc, model, rows)
    staging = _empty(Path(request.work) / "published")
    model.write_binary(str(staging))
    camera = next(iter(model.cameras.values()))
    found = {
        "focal_px": float(camera.mean_focal_length()),
        "points": model.num_points3D(),
        "reprojection_px": model.compute_mean_reprojection_error(),
    }
    sidecar = from_reconstruction(
        model,
        Path(request.database),
        images=Path(request.images),
        times={row["name"]: row["time_s"] for row in rows},
        gravity={row["name"]: tuple(row["gravity"]) for row in rows if row["gravity"]},
        gps={row["name"]: tuple(row["gps"]) for row in rows if row["gps"]},
        quality=(request.quality or {})
        | found
        | {key: world[key] for key in ("scale_from", "scale_uncertainty") if world.get(key)},
    )
    sidecar.save(Path(request.registration))
    target = Path(request.model)
    if target.exists():
        shutil.rmtree(target)
    staging.replace(target)
    return {
        **found,
        "camera": {"model": camera.model.name, "params": [float(v) for v in camera.params]},
        "names": sorted(image.name for image in model.images.values() if image.has_pose),
        "links": links(model),
        "refined": refined,
        "focal_uncertainty": fit.focal_uncertainty
        if math.isfinite(fit.focal_uncertainty)
        else None,
        "given_lens": fit.given,
        "positions_used": fit.positions,
        "world": world,
    }


def _given_lens(request: Request) -> Any:
    from worker_agent.stages.manifest import MODELS
    from worker_agent.stages.sfm_lens import FocalPrior

    if not request.camera["prior_focal"]:
        return None
    focals, _ = MODELS[request.camera["model"]]
    focal = statistics.fmean(request.camera["params"][:focals])
    return FocalPrior(focal, request.focal_uncertainty)


def _largest(request: Request, models: Any, mapper: str, out: Path) -> dict[str, Any]:
    """Plain numbers of the largest model: the first one may be two images of junk."""
    from worker_agent.stages.sfm_links import links
    from worker_agent.stages.sfm_shape import relief, triangulation_deg

    if not models:
        return {"candidate": None}
    index, model = max(models.items(), key=lambda item: item[1].num_reg_images())
    if model.num_points3D() == 0:
        return {"candidate": None}
    camera = next(iter(model.cameras.values()))
    images = [_posed(model, image) for image in model.images.values() if image.has_pose]
    return {
        "candidate": {
            "mapper": mapper,
            "pairs": request.pairs,
            "path": str(out / str(index)),
            "images": images,
            "points": model.num_points3D(),
            "reprojection_px": model.compute_mean_reprojection_error(),
            "focal_px": float(camera.mean_focal_length()),
            "triangulation_deg": triangulation_deg(model),
            "relief": relief(model, [image["depth"] for image in images]),
            "links": links(model),
        }
    }


def _posed(model: Any, image: Any) -> dict[str, Any]:
    import numpy as np

    centre = image.projection_center()
    seen = [model.points3D[p.point3D_id].xyz for p in image.get_observation_points2D()]
    depth = float(np.median(np.linalg.norm(np.array(seen) - centre, axis=1))) if seen else 0.0
    return {
        "name": image.name,
        "points": len(seen),
        "centre": [float(v) if math.isfinite(v) else 1e300 for v in centre],
        "depth": depth,
        "rotation": image.cam_from_world().rotation.matrix().T.tolist(),
    }


def _empty(path: Path) -> Path:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


STEPS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "extract": extract,
    "match": match,
    "map_global": map_global,
    "map_incremental": map_incremental,
    "finish": finish,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
