/*
 * The debug-exit port: a guest's write of v, of any size, ends parat with status (v << 1) | 1.
 */
#ifndef PARAT_DEVICE_DEBUG_EXIT_H
#define PARAT_DEVICE_DEBUG_EXIT_H

#include "vm/device.h"

struct debug_exit_config {
    uint16_t port;
};

extern const struct device_class debug_exit_class;

#endif
