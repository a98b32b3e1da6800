/* SPDX-License-Identifier: Apache-2.0 */
/* Handles and memory objects. A handle is something another process can be given: a memory object,
 * a stream, a file; a descriptor in production. A memory object is sparse memory of a fixed size
 * without a name (a memfd): the last holder's death frees it. Bytes never written read as zero and
 * are holes. Only env/, vm/ and its sub-folders may use this header: nothing above vm/ sees a
 * handle. */
#ifndef KLP_ENV_MEMORY_H
#define KLP_ENV_MEMORY_H

#include "env/env.h"

struct klp_handle {
    intptr_t value; /* -1 = none */
};
#define KLP_NO_HANDLE ((struct klp_handle){-1})
static inline bool klp_handle_is_none(struct klp_handle handle)
{
    return handle.value == -1;
}
void klp_handle_close(struct klp_env *env, struct klp_handle handle); /* none is fine */
KELPIE_MUST_USE bool klp_handle_copy(struct klp_env *env, struct klp_handle handle,
                                     struct klp_handle *out, struct kelpie_error **err);

KELPIE_MUST_USE bool klp_memory_create(struct klp_env *env, const char *name, uint64_t size,
                                       struct klp_handle *out, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_memory_size(struct klp_env *env, struct klp_handle memory, uint64_t *out,
                                     struct kelpie_error **err);
KELPIE_MUST_USE bool klp_memory_read(struct klp_env *env, struct klp_handle memory, uint64_t offset,
                                     void *out, size_t size, struct kelpie_error **err);
KELPIE_MUST_USE bool klp_memory_write(struct klp_env *env, struct klp_handle memory,
                                      uint64_t offset, const void *data, size_t size,
                                      struct kelpie_error **err);
/* The first written range at or after `offset`, in whole host pages; *out_size 0 = none. */
KELPIE_MUST_USE bool klp_memory_next(struct klp_env *env, struct klp_handle memory, uint64_t offset,
                                     uint64_t *out_offset, uint64_t *out_size,
                                     struct kelpie_error **err);
/* No byte and no size can change any more, for anybody. */
KELPIE_MUST_USE bool klp_memory_seal(struct klp_env *env, struct klp_handle memory,
                                     struct kelpie_error **err);
/* From a process not trusted: is it sealed, and of this size? CORRUPT otherwise. */
KELPIE_MUST_USE bool klp_memory_check(struct klp_env *env, struct klp_handle memory, uint64_t size,
                                      struct kelpie_error **err);

/* ---- for implementations only. */
struct klp_memory_ops {
    void (*close)(struct klp_env *, struct klp_handle);
    bool (*copy)(struct klp_env *, struct klp_handle, struct klp_handle *, struct kelpie_error **);
    bool (*create)(struct klp_env *, const char *, uint64_t, struct klp_handle *,
                   struct kelpie_error **);
    bool (*size)(struct klp_env *, struct klp_handle, uint64_t *, struct kelpie_error **);
    bool (*read)(struct klp_env *, struct klp_handle, uint64_t, void *, size_t,
                 struct kelpie_error **);
    bool (*write)(struct klp_env *, struct klp_handle, uint64_t, const void *, size_t,
                  struct kelpie_error **);
    bool (*next)(struct klp_env *, struct klp_handle, uint64_t, uint64_t *, uint64_t *,
                 struct kelpie_error **);
    bool (*seal)(struct klp_env *, struct klp_handle, struct kelpie_error **);
    bool (*check)(struct klp_env *, struct klp_handle, uint64_t, struct kelpie_error **);
};

#endif
