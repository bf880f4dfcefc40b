/*
 * A 16550A serial port. The host side is a console backend, or nothing.
 */
#ifndef PARAT_DEVICE_SERIAL_H
#define PARAT_DEVICE_SERIAL_H

#include "vm/device.h"

struct console;

#define SERIAL_COM1_PORT 0x3f8
#define SERIAL_COM1_IRQ  4
#define SERIAL_COM2_PORT 0x2f8
#define SERIAL_COM2_IRQ  3

struct serial_config {
    uint16_t port; /* first of 8 */
    unsigned irq;
    struct console *console; /* not owned; NULL: output is dropped, no input */
};

extern const struct device_class serial_class;

#endif
