/*
 * One instruction in software: the emulate exit of engines whose hardware or kernel cannot execute
 * it (a vector instruction on a device's register, mostly). vCPU's thread.
 */
#ifndef PARAT_VM_EMULATE_H
#define PARAT_VM_EMULATE_H

#include "base/bits.h"
#include "base/err.h"

struct emulator;
struct emulator_code;
struct x86_features;
struct vcpu;

enum emulate_result {
    EMULATE_DONE,     /* executed, or its exception is delivered; the vCPU has the new state */
    EMULATE_SHUTDOWN, /* a triple fault */
    EMULATE_ERROR,    /* the host cannot; *err tells */
};

/* For all vCPUs of a machine. Loop thread. */
int emulator_code_create(struct emulator_code **out, const struct x86_features *features,
                         struct err *err) MUST_USE;
void emulator_code_destroy(struct emulator_code *code); /* NULL is fine; after the emulators */

/* Executes the instruction at the vCPU's RIP. Makes vcpu->emulator at its first call. */
enum emulate_result emulator_run(struct vcpu *vcpu, struct err *err) MUST_USE;
void emulator_destroy(struct emulator *emulator); /* NULL is fine */

#endif
