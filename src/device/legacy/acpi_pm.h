/*
 * The ACPI fixed hardware of the ICH9: PM1 events and control, the PM timer, one GPE block, the
 * power button. It sets machine.power_button. The reset register, 0xcf9, is the host bridge's.
 */
#ifndef PARAT_DEVICE_ACPI_PM_H
#define PARAT_DEVICE_ACPI_PM_H

#include "vm/device.h"

/* Needs no configuration: the places are in vm/platform.h. */
extern const struct device_class acpi_pm_class;

#endif
