/*
 * The i8042 keyboard controller at ports 0x60 and 0x64: a keyboard on which nobody types, no mouse,
 * and the machine's oldest reset line.
 */
#ifndef PARAT_DEVICE_I8042_H
#define PARAT_DEVICE_I8042_H

#include "vm/device.h"

/* Needs no configuration. */
extern const struct device_class i8042_class;

#endif
