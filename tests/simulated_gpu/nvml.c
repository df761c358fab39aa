/* A driver's management library whose GPUs are lines of a text file, LEDGER:

       gpu UUID TOTAL_MIB RESERVED_MIB ok|hang|lost|mig
       mig PARENT_UUID UUID TOTAL_MIB DECODERS
       use UUID PID MIB C|G|B|H     (MIB < 0: not told; B: on two lists; H: hidden, on none)
       decode UUID PID PERCENT
       encode UUID SESSIONS

   The interface is nvml.h's: structures, versions and error codes as a driver of 2023 has them.
   Like a driver it forgets what a process held when that process ends. */

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { int row; } *nvmlDevice_t;
typedef struct { u64 total, free, used; } nvmlMemory_t;
typedef struct { u32 version; u64 total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { u32 pid; u64 usedGpuMemory; u32 gpuInstanceId, computeInstanceId; } nvmlProcessInfo_t;
typedef struct { u32 pid; u64 timeStamp; u32 smUtil, memUtil, encUtil, decUtil; } nvmlSample_t;
typedef struct {
    u32 multiprocessorCount, sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount,
        sharedJpegCount, sharedOfaCount, gpuInstanceSliceCount, computeInstanceSliceCount;
    u64 memorySizeMB;
} nvmlDeviceAttributes_t;

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9,
       LOST = 15, VERSION_MISMATCH = 25 };
enum { ROWS = 256 };

struct row { char uuid[96], parent[96], behaviour[8]; long total, reserved; int decoders; };
struct use { char uuid[96]; int pid; long mib; char kind; };

static struct { int row; } handles[ROWS];
static struct row rows[ROWS];
static struct use uses[ROWS], decodes[ROWS], encodes[ROWS];
static int n_rows, n_uses, n_decodes, n_encodes, ready;

static int alive(int pid) {
    char path[64], line[512], *end;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    end = fgets(line, sizeof line, f) ? strrchr(line, ')') : 0;
    fclose(f);
    return end && end[2] != 'Z' && end[2] != 'X';
}

static void load(void) {
    char line[512];
    FILE *f = fopen(LEDGER, "r");
    n_rows = n_uses = n_decodes = n_encodes = 0;
    while (f && fgets(line, sizeof line, f)) {
        struct row *r = rows + n_rows;
        struct use u = {.kind = 'C'};
        memset(r, 0, sizeof *r);
        if (sscanf(line, "gpu %95s %ld %ld %7s", r->uuid, &r->total, &r->reserved, r->behaviour) == 4)
            handles[n_rows].row = n_rows, n_rows++;
        else if (sscanf(line, "mig %95s %95s %ld %d", r->parent, r->uuid, &r->total, &r->decoders) == 4)
            handles[n_rows].row = n_rows, n_rows++;
        else if (sscanf(line, "use %95s %d %ld %c", u.uuid, &u.pid, &u.mib, &u.kind) == 4) {
            if (alive(u.pid)) uses[n_uses++] = u;
        } else if (sscanf(line, "decode %95s %d %ld", u.uuid, &u.pid, &u.mib) == 3)
            decodes[n_decodes++] = u;
        else if (sscanf(line, "encode %95s %ld", u.uuid, &u.mib) == 2)
            encodes[n_encodes++] = u;
    }
    if (f) fclose(f);
}

static struct row *of(nvmlDevice_t device) { load(); return rows + device->row; }

static int open_row(int i, nvmlDevice_t *device) {
    if (!strcmp(rows[i].behaviour, "hang")) for (;;) pause();
    if (!strcmp(rows[i].behaviour, "lost")) return LOST;
    *device = (nvmlDevice_t)&handles[i];
    return OK;
}

int nvmlInit_v2(void) {
    if (access(LEDGER ".hang", F_OK) == 0) for (;;) pause();
    if (access(LEDGER ".unloaded", F_OK) == 0) return NOT_LOADED;
    ready = 1;
    return OK;
}

const char *nvmlErrorString(int code) {
    return code == LOST ? "GPU is lost" : code == NOT_SUPPORTED ? "Not Supported" : "Some Error";
}

int nvmlDeviceGetCount_v2(u32 *count) {
    if (!ready) return UNINITIALIZED;
    load();
    *count = 0;
    for (int i = 0; i < n_rows; i++) *count += !rows[i].parent[0];
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(u32 index, nvmlDevice_t *device) {
    load();
    for (int i = 0; i < n_rows; i++)
        if (!rows[i].parent[0] && !index--) return open_row(i, device);
    return INVALID;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    load();
    for (int i = 0; i < n_rows; i++)
        if (!strcmp(rows[i].uuid, uuid)) return open_row(i, device);
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(nvmlDevice_t device, char *text, u32 length) {
    snprintf(text, length, "%s", of(device)->uuid);
    return OK;
}

int nvmlDeviceGetName(nvmlDevice_t device, char *text, u32 length) {
    snprintf(text, length, of(device)->parent[0] ? "Simulated MIG" : "Simulated");
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    struct row *r = of(device);
    if (memory->version != (sizeof *memory | 2 << 24)) return VERSION_MISMATCH;
    long used = 0;
    for (int i = 0; i < n_uses; i++)
        if (!strcmp(uses[i].uuid, r->uuid)) used += uses[i].mib < 0 ? -uses[i].mib : uses[i].mib;
    memory->total = (u64)r->total << 20;
    memory->reserved = (u64)r->reserved << 20;
    memory->used = (u64)used << 20;
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}

static int list(nvmlDevice_t device, u32 *count, nvmlProcessInfo_t *infos, const char *kinds) {
    struct row *r = of(device);
    u32 room = *count, found = 0;
    for (int i = 0; i < n_uses; i++) {
        if (strcmp(uses[i].uuid, r->uuid) || !strchr(kinds, uses[i].kind)) continue;
        if (found < room)
            infos[found] = (nvmlProcessInfo_t){(u32)uses[i].pid,
                uses[i].mib < 0 ? (u64)-1 : (u64)uses[i].mib << 20, (u32)-1, (u32)-1};
        found++;
    }
    *count = found;
    return found > room ? TOO_SMALL : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, u32 *n, nvmlProcessInfo_t *p) {
    return list(d, n, p, "CB");
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, u32 *n, nvmlProcessInfo_t *p) {
    return of(d)->parent[0] ? NOT_SUPPORTED : list(d, n, p, "GB");
}

int nvmlDeviceGetProcessUtilization(nvmlDevice_t d, nvmlSample_t *samples, u32 *count, u64 since) {
    struct row *r = of(d);
    u32 room = *count, found = 0;
    for (int i = 0; i < n_decodes; i++) {
        if (strcmp(decodes[i].uuid, r->uuid)) continue;
        if (found < room)
            samples[found] = (nvmlSample_t){.pid = (u32)decodes[i].pid, .timeStamp = since + 1,
                                            .decUtil = (u32)decodes[i].mib};
        found++;
    }
    *count = found;
    return !found ? NOT_FOUND : found > room || !samples ? TOO_SMALL : OK;
}

int nvmlDeviceGetDecoderUtilization(nvmlDevice_t d, u32 *percent, u32 *period_us) {
    struct row *r = of(d);
    if (r->parent[0]) return NOT_SUPPORTED;
    *percent = 0, *period_us = 167000;
    for (int i = 0; i < n_decodes; i++)
        if (!strcmp(decodes[i].uuid, r->uuid)) *percent += (u32)decodes[i].mib;
    return OK;
}

int nvmlDeviceGetEncoderStats(nvmlDevice_t d, u32 *sessions, u32 *fps, u32 *latency) {
    struct row *r = of(d);
    *sessions = *fps = *latency = 0;
    for (int i = 0; i < n_encodes; i++)
        if (!strcmp(encodes[i].uuid, r->uuid)) *sessions = (u32)encodes[i].mib;
    return OK;
}

int nvmlDeviceGetMigMode(nvmlDevice_t d, u32 *current, u32 *pending) {
    *current = *pending = !strcmp(of(d)->behaviour, "mig");
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, u32 *count) {
    (void)d;
    *count = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, u32 index, nvmlDevice_t *instance) {
    struct row *r = of(d);
    for (int i = 0; i < n_rows; i++)
        if (!strcmp(rows[i].parent, r->uuid) && !index--) return open_row(i, instance);
    return NOT_FOUND;
}

int nvmlDeviceGetAttributes_v2(nvmlDevice_t d, nvmlDeviceAttributes_t *a) {
    struct row *r = of(d);
    memset(a, 0, sizeof *a);
    a->sharedDecoderCount = (u32)r->decoders;
    a->memorySizeMB = (u64)r->total;
    return r->parent[0] ? OK : NOT_SUPPORTED;
}
