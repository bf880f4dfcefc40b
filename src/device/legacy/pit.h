/*
 * The 8254 timer: three counters at ports 0x40 to 0x43, counter 0 on line 0, counter 2 behind port
 * 0x61.
 */
#ifndef PARAT_DEVICE_PIT_H
#define PARAT_DEVICE_PIT_H

#include "vm/device.h"

/* Needs no configuration. */
extern const struct device_class pit_class;

#endif
