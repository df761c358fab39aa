"""The verb `probe`: what this host is and has free, in one message."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from worker_agent import allowance, bundle, clock, gpus, interpreter, processes
from worker_agent.epoch import state_directory
from worker_agent.protocol import (
    PROTOCOL_VERSION,
    GpuFacts,
    GpuProcess,
    HostFacts,
    ProbeRequest,
)
from worker_agent.refusal import RefusedError, failed
from worker_agent.version import agent_hash, code_root
from worker_agent.version import interpreter as python_version

_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def probe(request: ProbeRequest) -> HostFacts:
    """Facts of this host. Creates `work_dir`; raises RefusedError when it cannot."""
    work_dir = Path(request.work_dir)
    if not work_dir.is_absolute():
        raise failed("bad_request", f"work_dir {request.work_dir!r} is not an absolute path")
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failed(
            "agent_failed",
            f"cannot create work_dir {work_dir}: {error.strerror}: "
            "create it, or give the host another work_dir in the inventory",
        ) from None
    code = code_root()
    with contextlib.suppress(OSError, RefusedError):  # `start` would say so
        code = bundle.code_directory()  # the first stage need not wait until it is unpacked
    memory = allowance.memory_mib()
    devices, gpu_error = _devices(memory, state_directory(work_dir))
    disk = os.statvfs(work_dir)
    python = interpreter.choose(request.stage_python, work_dir)
    cuda = any(device.kind == "cuda" for device in devices)
    return HostFacts(
        protocol=PROTOCOL_VERSION,
        agent_hash=agent_hash(),
        hostname=platform.node(),
        boot_id=clock.boot_id(),
        python=python_version(),
        stage_python=python,
        stage_missing=interpreter.missing(python, work_dir, code, cuda=cuda),
        cpu_count=allowance.cores(),
        ram_total_mib=memory[0],
        ram_free_mib=memory[1],
        ram_own=allowance.ram_of_attempts(),
        disk_total_bytes=disk.f_blocks * disk.f_frsize,
        disk_free_bytes=disk.f_bavail * disk.f_frsize,
        gpus=devices,
        gpu_error=gpu_error,
        time=clock.wall(),
    )


def _devices(memory: tuple[int, int], state: Path) -> tuple[tuple[GpuFacts, ...], str]:
    """An installed driver that fails is an error, never a reason to train on the CPU."""
    reading = gpus.read(state)
    if not reading.driver:
        return (_cpu(memory),), ""
    return tuple(_cuda(gpu) for gpu in reading.gpus), reading.error


def _cuda(gpu: gpus.Gpu) -> GpuFacts:
    return GpuFacts(
        uuid=gpu.uuid,
        name=gpu.name,
        kind="cuda",
        total_mib=gpu.total_mib,
        free_mib=gpu.free_mib,
        reserved_mib=gpu.reserved_mib,
        parent=gpu.parent,
        processes=tuple(_process(use) for use in gpu.uses or _hidden(gpu)),
        has_decoder=gpu.has_decoder,
        decoder_percent=gpu.decoder_percent,
        encoder_sessions=gpu.encoder_sessions,
    )


def _hidden(gpu: gpus.Gpu) -> tuple[gpus.Use, ...]:
    """Memory is in use and no process is listed: in a container the driver may list none of them.
    What attempts were given this GPU is still to be known."""
    if gpu.total_mib - gpu.free_mib <= gpu.reserved_mib:
        return ()
    return tuple(gpus.Use(pid, None, False) for pid in processes.given_gpu(gpu.uuid).values())


def _process(use: gpus.Use) -> GpuProcess:
    """Ours by the attempt's cookie; of others whose it is, as far as this user may know."""
    owner = processes.attempt_of(use.pid)
    run_dir, attempt = owner if owner is not None else (None, None)
    return GpuProcess(
        pid=use.pid,
        used_mib=use.used_mib,
        run_dir=run_dir,
        attempt=attempt,
        name=processes.program_of(use.pid),
        user=processes.user_of(use.pid),
        decodes=use.decodes,
    )


def _cpu(memory: tuple[int, int]) -> GpuFacts:
    """The host itself as a device: its RAM."""
    return GpuFacts(
        uuid=f"CPU-{machine_id()}",
        name=_cpu_name(),
        kind="cpu",
        total_mib=memory[0],
        free_mib=memory[1],
    )


def machine_id() -> str:
    """32 hex digits that name this machine: machine-id(5), else a hash of the host name."""
    for path in _MACHINE_IDS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text:
            return text
    return hashlib.sha256(platform.node().encode()).hexdigest()[:32]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()
