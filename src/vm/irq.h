/*
 * Interrupt lines (global system interrupts). A line is the OR of its sources: each source holds a
 * level of its own, so that shared PCI interrupts work. Sinks (IOAPIC, 8259 pair) hear of the
 * line's level; notifiers hear of its end-of-interrupt (for resampling).
 *
 * Lock order: device lock -> line lock -> sink's own lock -> engine. A sink must not call back into
 * the lines (irq_lines_eoi is for the chip's own EOI path and is called with no lock held).
 */
#ifndef PARAT_VM_IRQ_H
#define PARAT_VM_IRQ_H

#include <stdbool.h>

#include "base/bits.h"
#include "base/list.h"

#define IRQ_LINE_COUNT 24

struct irq_lines;

int irq_lines_create(struct irq_lines **out) MUST_USE;
void irq_lines_destroy(struct irq_lines *lines);

/* Owned by a device; level starts low. line < IRQ_LINE_COUNT. */
struct irq_source {
    struct irq_lines *lines;
    unsigned line;
    bool level; /* guarded by the lines' lock */
};

void irq_source_init(struct irq_source *source, struct irq_lines *lines, unsigned line);
/* Any thread. Setting the level it has does nothing. */
void irq_source_set(struct irq_source *source, bool level);
/* Up and down: one edge. */
void irq_source_pulse(struct irq_source *source);

/* Told of each change of a line's level, on the changing thread, in order. The caller owns it. */
struct irq_sink {
    void (*set_level)(struct irq_sink *sink, unsigned line, bool level);
    struct list link;
};
void irq_lines_add_sink(struct irq_lines *lines, struct irq_sink *sink);
void irq_lines_remove_sink(struct irq_lines *lines, struct irq_sink *sink);

struct irq_eoi_notifier {
    void (*eoi)(struct irq_eoi_notifier *notifier, unsigned line);
    unsigned line;
    struct list link;
};
/* Added while no vCPU runs, never removed. */
void irq_lines_add_eoi_notifier(struct irq_lines *lines, struct irq_eoi_notifier *notifier);
/* The chip that delivered the line tells that the guest ended the interrupt. No lock held. */
void irq_lines_eoi(struct irq_lines *lines, unsigned line);

/* The lines' present levels, one bit each. */
uint32_t irq_lines_levels(struct irq_lines *lines);

#endif
