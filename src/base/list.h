/* SPDX-License-Identifier: Apache-2.0 */
/* An intrusive, doubly linked, circular list. */
#ifndef KLP_BASE_LIST_H
#define KLP_BASE_LIST_H

#include "base/mem.h"

struct klp_list {
    struct klp_list *next, *prev;
};

static inline void klp_list_init(struct klp_list *head)
{
    head->next = head->prev = head;
}

static inline bool klp_list_is_empty(const struct klp_list *head)
{
    return head->next == head;
}

static inline void klp_list_append(struct klp_list *head, struct klp_list *item)
{
    item->prev = head->prev;
    item->next = head;
    head->prev->next = item;
    head->prev = item;
}

static inline void klp_list_remove(struct klp_list *item)
{
    item->prev->next = item->next;
    item->next->prev = item->prev;
    item->next = item->prev = item;
}

#define KLP_LIST_EACH(item, head)                                                                  \
    for (struct klp_list * (item) = (head)->next; (item) != (head); (item) = (item)->next)
/* The current item may be removed. */
#define KLP_LIST_EACH_SAFE(item, following, head)                                                  \
    for (struct klp_list * (item) = (head)->next, *(following) = (item)->next; (item) != (head);   \
         (item) = (following), (following) = (item)->next)

#endif
