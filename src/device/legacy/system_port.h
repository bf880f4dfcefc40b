/*
 * System control port A (0x92: fast reset, A20) and the POST port (0x80: delays).
 */
#ifndef PARAT_DEVICE_SYSTEM_PORT_H
#define PARAT_DEVICE_SYSTEM_PORT_H

#include "vm/device.h"

/* Needs no configuration. */
extern const struct device_class system_port_class;

#endif
