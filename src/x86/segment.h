/*
 * Segment registers as instructions load them. SDM vol. 3 chapters 3 and 5.
 */
#ifndef PARAT_X86_SEGMENT_H
#define PARAT_X86_SEGMENT_H

#include "x86/cpu.h"

/*
 * What MOV and POP to ES, SS, DS, FS or GS do, in every mode, with every check; raises. For SS it
 * also starts the interrupt shadow. The instruction needs X86_INSN_END; POP calls it before it
 * moves the stack pointer. (MOV and POP to CS do not exist: #UD.)
 */
void x86_load_segment(struct x86_cpu *cpu, unsigned seg, uint16_t selector);

#endif
