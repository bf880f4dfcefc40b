/* What lapic.c and lapic_timer.c share. Owner thread. */
#ifndef PARAT_X86_LAPIC_INT_H
#define PARAT_X86_LAPIC_INT_H

#include "x86/lapic.h"

#define LVT_MASKED BIT(16)

/* A local source fires: interrupt, NMI or nothing, as its LVT entry says. */
void x86_lapic_raise_lvt(struct x86_lapic *lapic, enum x86_lapic_lvt index);

void x86_lapic_timer_run(struct x86_lapic *lapic);
uint32_t x86_lapic_timer_current(struct x86_lapic *lapic);
void x86_lapic_timer_write_initial(struct x86_lapic *lapic, uint32_t value);
void x86_lapic_timer_write_divide(struct x86_lapic *lapic, uint32_t value);
/* The timer's LVT entry was written; old is what it was. */
void x86_lapic_timer_mode_changed(struct x86_lapic *lapic, uint32_t old);

#endif
