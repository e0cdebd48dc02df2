/* A fake NVIDIA driver with one card of 300 W. It has fallen off the bus once there is a file with
   the name in the environment's LOST. With -DOLD it lacks a function, and gives no memory, as where
   GPU and CPU share it. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
typedef struct card card;
#define ANSWER(set) if (!access(getenv("LOST") ?: "", F_OK)) return 15; set; return 0
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "some error"; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, card **handle) {
    *handle = (card *)&nvmlInitWithFlags;
    return 0;
}
int nvmlDeviceGetName(card *c, char *name, unsigned length) { strcpy(name, "Fake 300"); return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    strcpy(version, "999.1");
    return 0;
}
int nvmlDeviceGetMigMode(card *c, unsigned *current, unsigned *pending) { return 3; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13010; return 0; }
int nvmlDeviceGetCudaComputeCapability(card *c, int *major, int *minor) {
    *major = 8; *minor = 9;
    return 0;
}
int nvmlDeviceGetEnforcedPowerLimit(card *c, unsigned *mw) { *mw = 300000; return 0; }
int nvmlDeviceGetUtilizationRates(card *c, unsigned *rates) {
    ANSWER((rates[0] = 73, rates[1] = 7));
}
int nvmlDeviceGetMemoryInfo(card *c, unsigned long long *m) {
#ifdef OLD
    return 3;
#endif
    ANSWER((m[0] = 80ull << 30, m[1] = 60ull << 30, m[2] = 20ull << 30));
}
int nvmlDeviceGetPowerUsage(card *c, unsigned *mw) { ANSWER(*mw = 300000); }
int nvmlDeviceGetTotalEnergyConsumption(card *c, unsigned long long *mj) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ANSWER(*mj = 300 * (1000ull * now.tv_sec + now.tv_nsec / 1000000));
}
int nvmlDeviceGetClockInfo(card *c, int type, unsigned *mhz) { ANSWER(*mhz = 1500); }
int nvmlDeviceGetPcieThroughput(card *c, int counter, unsigned *kb) { ANSWER(*kb = 2000); }
#ifndef OLD
int nvmlDeviceGetComputeRunningProcesses_v3(card *c, unsigned *count, void *found) {
    ANSWER(*count = 0);
}
#endif
int nvmlDeviceGetTemperature(card *c, int sensor, unsigned *celsius) { ANSWER(*celsius = 61); }
/* too hot */
int nvmlDeviceGetCurrentClocksThrottleReasons(card *c, unsigned long long *mask) {
    ANSWER(*mask = 0x20);
}
