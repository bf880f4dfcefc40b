/* The machine model q35-1: its devices, their order and their slots. Main thread. */
#ifndef PARAT_CLI_Q35_H
#define PARAT_CLI_Q35_H

#include "base/bits.h"
#include "base/clock.h"
#include "base/err.h"

struct composition;

/* The guest's TSC counts nanoseconds on every engine that can choose. */
#define Q35_TSC_HZ NS_PER_S

/* Adds all devices to c->machine, whose backends are open. -errno with a sentence. */
int q35_add_devices(struct composition *c, struct err *err) MUST_USE;

#endif
