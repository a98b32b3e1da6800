/* SPDX-License-Identifier: Apache-2.0 */
/* Who owns which agent, changed only by compare-and-set; and which nodes there are.
 * Implementations: sqlite/, later peer/ and etcd/. Every call may block. Readings are never older
 * than what was acknowledged before they were asked for. UNKNOWN from a changing call: it happened,
 * did not, or is on its way still; settle it before the next step (klp_registry_settle does). */
#ifndef KLP_REGISTRY_REGISTRY_H
#define KLP_REGISTRY_REGISTRY_H

#include "env/env.h"
#include "format/record.h"

struct klp_registry_ops;
struct klp_registry {
    const struct klp_registry_ops *ops;
    struct klp_env *env;
};

/* EXISTS when id or name is taken (checked together, atomically). Sets record->revision = 1. */
KELPIE_MUST_USE kelpie_outcome klp_registry_create(const struct kelpie_op *op,
                                                   struct klp_registry *registry,
                                                   struct klp_agent_record *record,
                                                   struct kelpie_error **err);
/* By id, or by name. NOT_FOUND names it. The caller finishes *out. */
KELPIE_MUST_USE kelpie_outcome klp_registry_get(const struct kelpie_op *op,
                                                struct klp_registry *registry, const char *id,
                                                struct klp_agent_record *out,
                                                struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_registry_find(const struct kelpie_op *op,
                                                 struct klp_registry *registry, const char *name,
                                                 struct klp_agent_record *out,
                                                 struct kelpie_error **err);
/* Replaces the record if its stored revision and epoch are those of `expected`; next->epoch must
 * not be lower (asserted). On OK next->revision is the new one. CONFLICT: someone changed it;
 * nothing happened. Renewals of the lease change `beat` but not `revision`, and are kept through a
 * CAS. UNKNOWN: next->revision is what it would be, for settle; FAIL: `next` is as it was. A new
 * name that is taken: EXISTS. NOT_FOUND: gone. */
KELPIE_MUST_USE kelpie_outcome klp_registry_cas(const struct kelpie_op *op,
                                                struct klp_registry *registry,
                                                const struct klp_agent_record *expected,
                                                struct klp_agent_record *next,
                                                struct kelpie_error **err);
/* After a CAS ended UNKNOWN: reads back until the registry answers or the op ends. OK:
 * *out_happened and *current are known. With next->revision it happened if the stored record is of
 * that revision or a later one and says the same; an earlier revision says no, once a change that
 * changes nothing has used it up: the CAS may be on its way, and must not arrive later. Only the
 * owner changes what a record of its epoch says, and it settles before it goes on. Without a
 * revision (0 = not known) it happened if the stored record is at next's epoch with next's move_id,
 * owner and state. FAIL(NOT_FOUND): the agent is gone. UNKNOWN: the op ended first. */
KELPIE_MUST_USE kelpie_outcome klp_registry_settle(
    const struct kelpie_op *op, struct klp_registry *registry, const struct klp_agent_record *next,
    bool *out_happened, struct klp_agent_record *current, struct kelpie_error **err);
/* The same record but for the beat, which renewals change, and the revision, which settling does.
 */
bool klp_registry_says_same(const struct klp_agent_record *a, const struct klp_agent_record *b);
/* beat += 1 if owner and epoch still hold; CONFLICT otherwise. Idempotent enough: UNKNOWN counts as
 * not renewed. */
KELPIE_MUST_USE kelpie_outcome klp_registry_renew(const struct kelpie_op *op,
                                                  struct klp_registry *registry, const char *id,
                                                  const char *owner, uint64_t epoch,
                                                  struct kelpie_error **err);
/* Only if revision and epoch are those of `expected`. CONFLICT; NOT_FOUND when it is gone already.
 */
KELPIE_MUST_USE kelpie_outcome klp_registry_delete(const struct kelpie_op *op,
                                                   struct klp_registry *registry,
                                                   const struct klp_agent_record *expected,
                                                   struct kelpie_error **err);
/* All agents, sorted by name, each record borrowed during the call. */
KELPIE_MUST_USE kelpie_outcome
klp_registry_list(const struct kelpie_op *op, struct klp_registry *registry,
                  bool (*each)(void *arg, const struct klp_agent_record *record), void *arg,
                  struct kelpie_error **err);
/* Returns OK when the agent's revision is greater than `revision` (or the agent is gone),
 * FAIL(TIMEOUT) otherwise. A hint, that may come for nothing or not at all: read. */
KELPIE_MUST_USE kelpie_outcome klp_registry_watch(const struct kelpie_op *op,
                                                  struct klp_registry *registry, const char *id,
                                                  uint64_t revision, struct kelpie_error **err);

KELPIE_MUST_USE kelpie_outcome klp_registry_node_put(const struct kelpie_op *op,
                                                     struct klp_registry *registry,
                                                     const struct klp_node_record *node,
                                                     struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_registry_node_get(const struct kelpie_op *op,
                                                     struct klp_registry *registry,
                                                     const char *name, struct klp_node_record *out,
                                                     struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome
klp_registry_node_list(const struct kelpie_op *op, struct klp_registry *registry,
                       bool (*each)(void *arg, const struct klp_node_record *node), void *arg,
                       struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_registry_node_remove(const struct kelpie_op *op,
                                                        struct klp_registry *registry,
                                                        const char *name,
                                                        struct kelpie_error **err);

const char *klp_registry_name(const struct klp_registry *registry);
void klp_registry_destroy(struct klp_registry *registry);
KLP_AUTO_DEFINE(registry, struct klp_registry *, klp_registry_destroy)

/* ---- for implementations only: rows of text; the wrappers encode, decode, check. */
struct klp_registry_ops {
    const char *(*name)(const struct klp_registry *);
    kelpie_outcome (*create)(const struct kelpie_op *, struct klp_registry *,
                             const struct klp_agent_record *, struct klp_bytes text,
                             struct kelpie_error **);
    /* by_name: key is the name. *out_beat overrides the beat in the text. */
    kelpie_outcome (*get)(const struct kelpie_op *, struct klp_registry *, bool by_name,
                          const char *key, struct klp_buf *out, uint64_t *out_beat,
                          struct kelpie_error **);
    kelpie_outcome (*cas)(const struct kelpie_op *, struct klp_registry *, const char *id,
                          uint64_t revision, uint64_t epoch, const struct klp_agent_record *next,
                          struct klp_bytes text, struct kelpie_error **);
    kelpie_outcome (*renew)(const struct kelpie_op *, struct klp_registry *, const char *id,
                            const char *owner, uint64_t epoch, struct kelpie_error **);
    kelpie_outcome (*remove)(const struct kelpie_op *, struct klp_registry *, const char *id,
                             uint64_t revision, uint64_t epoch, struct kelpie_error **);
    kelpie_outcome (*list)(const struct kelpie_op *, struct klp_registry *,
                           bool (*)(void *, struct klp_bytes text, uint64_t beat), void *,
                           struct kelpie_error **);
    kelpie_outcome (*watch)(const struct kelpie_op *, struct klp_registry *, const char *id,
                            uint64_t revision, struct kelpie_error **);
    kelpie_outcome (*node_put)(const struct kelpie_op *, struct klp_registry *, const char *name,
                               struct klp_bytes text, struct kelpie_error **);
    kelpie_outcome (*node_get)(const struct kelpie_op *, struct klp_registry *, const char *name,
                               struct klp_buf *out, struct kelpie_error **);
    kelpie_outcome (*node_list)(const struct kelpie_op *, struct klp_registry *,
                                bool (*)(void *, struct klp_bytes text), void *,
                                struct kelpie_error **);
    kelpie_outcome (*node_remove)(const struct kelpie_op *, struct klp_registry *, const char *name,
                                  struct kelpie_error **);
    void (*destroy)(struct klp_registry *);
};

#endif
