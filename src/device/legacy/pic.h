/*
 * The pair of 8259A interrupt controllers: a sink of lines 0 to 15, whose output goes to LINT0 of
 * vCPU 0. It sets machine.chip_acknowledge.
 */
#ifndef PARAT_DEVICE_PIC_H
#define PARAT_DEVICE_PIC_H

#include "vm/device.h"

/* Needs no configuration. */
extern const struct device_class pic_class;

#endif
