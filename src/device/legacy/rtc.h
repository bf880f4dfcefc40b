/*
 * The MC146818 real-time clock and its 128 bytes of CMOS RAM, at ports 0x70 and 0x71, line 8.
 */
#ifndef PARAT_DEVICE_RTC_H
#define PARAT_DEVICE_RTC_H

#include "vm/device.h"

/* Needs no configuration: memory sizes come from the machine. */
extern const struct device_class rtc_class;

#endif
