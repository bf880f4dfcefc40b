/* What `parat disk info` and `parat disk check` print, as text and as JSON. Main thread. */
#ifndef PARAT_CLI_DISK_REPORT_H
#define PARAT_CLI_DISK_REPORT_H

#include <stdbool.h>

#include "backend/disk/image_info.h"
#include "backend/disk/qcow2.h"

void disk_report_info(const struct image_info *info, const char *path, bool json);
void disk_report_check(const struct qcow2_report *report, const char *path, bool json);

#endif
