/* Intrusive doubly linked list with a head that is its own sentinel. The owner's lock guards it. */
#ifndef PARAT_BASE_LIST_H
#define PARAT_BASE_LIST_H

#include <stdbool.h>

struct list {
    struct list *next, *prev;
};

static inline void list_init(struct list *list)
{
    list->next = list->prev = list;
}

static inline bool list_empty(const struct list *list)
{
    return list->next == list;
}

static inline void list_insert_after(struct list *at, struct list *node)
{
    node->next = at->next;
    node->prev = at;
    at->next->prev = node;
    at->next = node;
}

static inline void list_push_back(struct list *list, struct list *node)
{
    list_insert_after(list->prev, node);
}

/* Safe to call twice: a removed node points at itself. */
static inline void list_remove(struct list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    node->next = node->prev = node;
}

/* Not safe against removal of pos. */
#define list_for_each(pos, head)                                                                   \
    for (struct list *pos = (head)->next; pos != (head); pos = pos->next)

#endif
