/*
 * Engine `fake`: plays exits from a script, for unit tests of machine and devices. It executes
 * nothing. Each vCPU takes the next exit of the script for its index; at the script's end it waits
 * for a kick.
 */
#ifndef PARAT_ENGINE_FAKE_FAKE_H
#define PARAT_ENGINE_FAKE_FAKE_H

#include "vm/engine.h"

extern const struct engine_ops engine_fake;

/* Called on the vCPU's thread for exit number `step`; fills *exit, returns false at the end. */
typedef bool engine_fake_script(void *context, unsigned vcpu, unsigned step, struct vm_exit *exit);

/* Before machine_run. */
void engine_fake_set_script(struct engine_vm *vm, engine_fake_script *script, void *context);

/* What devices did to the engine. */
#define ENGINE_FAKE_MSI_MAX      64
#define ENGINE_FAKE_DOORBELL_MAX 64
struct engine_fake_log {
    unsigned msi_count; /* all; the first ENGINE_FAKE_MSI_MAX are kept */
    struct {
        uint64_t address;
        uint32_t data;
    } msi[ENGINE_FAKE_MSI_MAX];
    bool extint;
    unsigned nmi_count;
    uint64_t written_bytes;  /* by host-side write brackets */
    unsigned doorbell_count; /* that hang now */
    struct engine_fake_doorbell {
        uint64_t address;
        unsigned size;
        int fd;
    } doorbell[ENGINE_FAKE_DOORBELL_MAX];
};
/* A copy, at any time. */
void engine_fake_read_log(struct engine_vm *vm, struct engine_fake_log *out);

#endif
