/* The portable vCPU state as fields of the device state format. Names are those of x86/state.h. */
#ifndef PARAT_VM_STATE_VCPU_H
#define PARAT_VM_STATE_VCPU_H

#include "vm/state.h"
#include "x86/state.h"

void state_vcpu_save(const struct x86_state *state, struct state_writer *w);
/* Fields that are missing stay as they are; the caller starts from the reset state and validates.
 */
void state_vcpu_load(struct x86_state *state, struct state_reader *r);

#endif
