/* Two GPUs as NVML reports them: one busy and held back, one that tells nothing but its name. */
#include <string.h>
typedef struct { int index; } Device;
static Device devices[2] = {{0}, {1}};
static int give(unsigned *target, unsigned value, Device *device) { if (device->index) return 3; *target = value; return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) { *device = &devices[index]; return 0; }
int nvmlDeviceGetName(Device *device, char *name, unsigned size) { strncpy(name, device->index ? "Quiet" : "Busy", size); return 0; }
int nvmlDeviceGetClockInfo(Device *device, int clock, unsigned *mhz) { return give(mhz, clock == 1 ? 1300 : 7001, device); }
int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius) { return give(celsius, 71, device); }
int nvmlDeviceGetPowerUsage(Device *device, unsigned *milliwatts) { return give(milliwatts, 68500, device); }
int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *milliwatts) { return give(milliwatts, 70000, device); }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) {
    if (device->index) return 3;
    *reasons = 0x1 | 0x4 | 0x40;
    return 0;
}
