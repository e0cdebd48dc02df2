/* A fake NVIDIA driver with two cards. Card 1 has no energy counter, and is lost when its power is
   asked for the 3rd and the 5th time. Card 0 is in MIG mode, card 1 has none. Of three processes
   with memory on each card one has the id in the environment's SERVER_PID, and on card 1 that one's
   memory is not known. With -DHANGS card 0 never answers the 3rd question for its power. Card 0's
   MIG part is MIG-a1-2-3. The driver is for the environment's CUDA_DRIVER (13000), and does not
   start if NVML_FAILS is an error. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef struct card { int index; } card;
static card cards[2] = {{0}, {1}}, part = {9};
static int asked[2];
enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };
int nvmlInitWithFlags(unsigned flags) { return atoi(getenv("NVML_FAILS") ?: "0"); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = atoi(getenv("CUDA_DRIVER") ?: "13000");
    return OK;
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "some error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, card **handle) {
    *handle = &cards[index];
    return OK;
}
int nvmlDeviceGetName(card *c, char *name, unsigned length) {
    strcpy(name, c->index ? "Fake B" : "Fake A");
    return OK;
}
int nvmlDeviceGetUUID(card *c, char *uuid, unsigned length) {
    strcpy(uuid, c->index ? "GPU-b1-2" : "GPU-a1-2");
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, card **handle) {
    *handle = &part;
    return strcmp(uuid, "MIG-a1-2-3") ? NOT_FOUND : OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(card *c, card **handle) {
    *handle = &cards[0];
    return OK;
}
int nvmlDeviceGetIndex(card *c, unsigned *index) {
    *index = c->index;
    return OK;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    strcpy(version, "999.1");
    return OK;
}
int nvmlDeviceGetCudaComputeCapability(card *c, int *major, int *minor) {
    *major = 9; *minor = 0;
    return 0;
}
int nvmlDeviceGetEnforcedPowerLimit(card *c, unsigned *mw) { *mw = 700000; return 0; }
int nvmlDeviceGetUtilizationRates(card *c, unsigned *rates) {
    rates[0] = 40 + c->index;
    rates[1] = 7;
    return OK;
}
int nvmlDeviceGetMemoryInfo(card *c, unsigned long long *m) { /* total, free, used */
    m[0] = 80ull << 30; m[1] = 60ull << 30; m[2] = 20ull << 30;
    return OK;
}
int nvmlDeviceGetPowerUsage(card *c, unsigned *mw) {
    asked[c->index]++;
    if (c->index == 1 && (asked[1] == 3 || asked[1] == 5)) return GPU_IS_LOST;
#ifdef HANGS
    while (asked[0] == 3) sleep(1);
#endif
    *mw = 250500 + 1000 * c->index;
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(card *c, unsigned long long *mj) {
    *mj = 5000000000ull + 500ull * asked[c->index];
    return c->index ? NOT_SUPPORTED : OK;
}
/* SM, memory */
int nvmlDeviceGetClockInfo(card *c, int type, unsigned *mhz) {
    *mhz = type == 1 ? 1980 : type == 2 ? 2619 : 1;
    return OK;
}
/* TX, RX */
int nvmlDeviceGetPcieThroughput(card *c, int counter, unsigned *kb) {
    usleep(1000);
    *kb = counter ? 3000 : 2000;
    return OK;
}
int nvmlDeviceGetMigMode(card *c, unsigned *current, unsigned *pending) {
    *current = *pending = 1;
    return c->index ? NOT_SUPPORTED : OK;
}
struct process { unsigned pid; unsigned long long used; unsigned instance, compute; };
int nvmlDeviceGetComputeRunningProcesses_v3(card *c, unsigned *count, struct process *found) {
    if (!found) { *count = 3; return 7; /* insufficient size */ }
    *count = 3;
    unsigned server = atoi(getenv("SERVER_PID") ?: "0");
    for (unsigned i = 0; i < 3; i++) found[i] = (struct process){i ? i : server, 5ull << 30, 0, 0};
    if (c->index) found[0].used = ~0ull;
    return OK;
}
int nvmlDeviceGetTemperature(card *c, int sensor, unsigned *celsius) {
    *celsius = 61 + c->index;
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(card *c, unsigned long long *mask) {
    *mask = c->index ? 0x24 : 0;
    return OK;
}
