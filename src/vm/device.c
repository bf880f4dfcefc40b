/* What all devices share. */
#include "vm/device.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

void device_guest_error(struct device *device, const char *format, ...)
{
    char text[200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    atomic_fetch_add_explicit(&device->guest_errors, 1, memory_order_relaxed);
    log_line_limited(&device->log_limit, LOG_INFO, "%s: %s", device->path, text);
}
