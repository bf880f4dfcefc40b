/*
 * The I/O APIC: 24 pins at MACHINE_IOAPIC_BASE, a sink of the machine's interrupt lines. It sets
 * machine.chip_eoi.
 */
#ifndef PARAT_DEVICE_IOAPIC_H
#define PARAT_DEVICE_IOAPIC_H

#include "vm/device.h"

/* Needs no configuration. */
extern const struct device_class ioapic_class;

#endif
