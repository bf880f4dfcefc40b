/*
 * Interrupt lines; see irq.h for threads and lock order. The lines' lock is held while sinks are
 * told, so that they hear of changes in order.
 */
#include "vm/irq.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct irq_lines {
    pthread_mutex_t lock;
    unsigned asserted[IRQ_LINE_COUNT]; /* sources whose level is high */
    struct list sinks;
    struct list eoi_notifiers;
};

int irq_lines_create(struct irq_lines **out)
{
    struct irq_lines *lines = calloc(1, sizeof *lines);
    if (!lines)
        return -ENOMEM;
    pthread_mutex_init(&lines->lock, NULL);
    list_init(&lines->sinks);
    list_init(&lines->eoi_notifiers);
    *out = lines;
    return 0;
}

void irq_lines_destroy(struct irq_lines *lines)
{
    if (!lines)
        return;
    pthread_mutex_destroy(&lines->lock);
    free(lines);
}

void irq_source_init(struct irq_source *source, struct irq_lines *lines, unsigned line)
{
    *source = (struct irq_source) {.lines = lines, .line = line, .level = false};
}

static void tell_sinks(struct irq_lines *lines, unsigned line, bool level)
{
    list_for_each (link, &lines->sinks) {
        struct irq_sink *sink = container_of(link, struct irq_sink, link);
        sink->set_level(sink, line, level);
    }
}

/* Lock held. */
static void source_set_locked(struct irq_source *source, bool level)
{
    struct irq_lines *lines = source->lines;
    if (source->level == level)
        return;
    source->level = level;
    unsigned *asserted = &lines->asserted[source->line];
    if (level && (*asserted)++ == 0)
        tell_sinks(lines, source->line, true);
    else if (!level && --*asserted == 0)
        tell_sinks(lines, source->line, false);
}

void irq_source_set(struct irq_source *source, bool level)
{
    pthread_mutex_lock(&source->lines->lock);
    source_set_locked(source, level);
    pthread_mutex_unlock(&source->lines->lock);
}

void irq_source_pulse(struct irq_source *source)
{
    pthread_mutex_lock(&source->lines->lock);
    source_set_locked(source, true);
    source_set_locked(source, false);
    pthread_mutex_unlock(&source->lines->lock);
}

void irq_lines_add_sink(struct irq_lines *lines, struct irq_sink *sink)
{
    pthread_mutex_lock(&lines->lock);
    list_push_back(&lines->sinks, &sink->link);
    pthread_mutex_unlock(&lines->lock);
}

void irq_lines_remove_sink(struct irq_lines *lines, struct irq_sink *sink)
{
    pthread_mutex_lock(&lines->lock);
    list_remove(&sink->link);
    pthread_mutex_unlock(&lines->lock);
}

void irq_lines_add_eoi_notifier(struct irq_lines *lines, struct irq_eoi_notifier *notifier)
{
    list_push_back(&lines->eoi_notifiers, &notifier->link);
}

void irq_lines_eoi(struct irq_lines *lines, unsigned line)
{
    list_for_each (link, &lines->eoi_notifiers) {
        struct irq_eoi_notifier *notifier = container_of(link, struct irq_eoi_notifier, link);
        if (notifier->line == line)
            notifier->eoi(notifier, line);
    }
}

uint32_t irq_lines_levels(struct irq_lines *lines)
{
    uint32_t levels = 0;
    pthread_mutex_lock(&lines->lock);
    for (unsigned i = 0; i < IRQ_LINE_COUNT; i++)
        levels |= (uint32_t)(lines->asserted[i] != 0) << i;
    pthread_mutex_unlock(&lines->lock);
    return levels;
}
