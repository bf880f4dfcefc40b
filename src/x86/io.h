/*
 * Port I/O permission and access, shared by IN/OUT (system.c) and INS/OUTS (exec_string.c).
 * SDM vol. 1 chapter 19 "Input/Output".
 */
#ifndef PARAT_X86_IO_H
#define PARAT_X86_IO_H

#include "x86/cpu.h"

/*
 * May the program touch `size` (1, 2, 4) ports from `port`? Raises #GP(0) when IOPL and the TSS's
 * I/O bitmap forbid it. Also notes I/O breakpoints that match. Call it before any memory access.
 */
void x86_check_io(struct x86_cpu *cpu, uint16_t port, unsigned size);

static inline uint32_t x86_in(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
    return cpu->ops->pio_read(cpu->context, port, size);
}

static inline void x86_out(struct x86_cpu *cpu, uint16_t port, unsigned size, uint32_t value)
{
    cpu->ops->pio_write(cpu->context, port, size, value);
}

#endif
