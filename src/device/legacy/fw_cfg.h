/*
 * fw_cfg: named blobs for firmware and kernels, at port 0x510.
 */
#ifndef PARAT_DEVICE_FW_CFG_H
#define PARAT_DEVICE_FW_CFG_H

#include "vm/device.h"

#define FW_CFG_NAME_MAX  55
#define FW_CFG_FILES_MAX 64

/* Needs no configuration: CPU count and RAM size come from the machine. */
extern const struct device_class fw_cfg_class;

/*
 * Adds a file, or replaces the data of the one with this name. The data is copied. Before the first
 * run, or while no vCPU runs. -ENOSPC, -ENOMEM, -ENAMETOOLONG.
 */
int fw_cfg_set_file(struct device *device, const char *name, const void *data,
                    uint32_t size) MUST_USE;

#endif
