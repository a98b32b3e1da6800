/* SPDX-License-Identifier: Apache-2.0 */
/* The host's side of the guest protocol (format/guest_frame.h): one session over one stream, many
 * channels at once, a reader task that hands frames to their channels within their credit. Every
 * call has the op's deadline. A broken protocol ends the session (PROTOCOL), never the daemon. */
#ifndef KLP_VM_GUEST_H
#define KLP_VM_GUEST_H

#include "kelpie/vm.h"

#include "env/chan.h"
#include "format/guest_frame.h"

struct klp_guest;

struct klp_guest_hello {
    uint64_t caps;
    char arch[16];
    bool has_generation;
    uint8_t generation[16]; /* the last one it was given */
    enum klp_main_state main_state;
};

/* Takes the stream over. HELLO until the right HELLO_ACK comes or the op ends. */
KELPIE_MUST_USE kelpie_outcome klp_guest_open(const struct kelpie_op *op, struct klp_env *env,
                                              struct klp_stream *stream, struct klp_guest **out,
                                              struct kelpie_error **err);
void klp_guest_close(struct klp_guest *guest); /* waiting calls end with UNREACHABLE first */
bool klp_guest_is_alive(struct klp_guest *guest);
const struct klp_guest_hello *klp_guest_hello(const struct klp_guest *guest);
/* May an answer pass to the outside? Asked before every delivery of exec, file and log bytes. */
void klp_guest_gate(struct klp_guest *guest, bool (*may_pass)(void *arg), void *arg);

KELPIE_MUST_USE kelpie_outcome klp_guest_exec(const struct kelpie_op *op, struct klp_guest *guest,
                                              const struct kelpie_exec *exec,
                                              struct kelpie_exec_status *out,
                                              struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_guest_put(const struct kelpie_op *op, struct klp_guest *guest,
                                             const char *path,
                                             size_t (*input)(void *arg, void *out, size_t capacity),
                                             void *arg, struct kelpie_error **err);
/* type: KLP_GUEST_GET, or KLP_GUEST_CHECKPOINT with path NULL. */
KELPIE_MUST_USE kelpie_outcome klp_guest_get(
    const struct kelpie_op *op, struct klp_guest *guest, uint16_t type, const char *path,
    bool (*output)(void *arg, const void *data, size_t size), void *arg, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_guest_setup(const struct kelpie_op *op, struct klp_guest *guest,
                                               const char *hostname, const char *const *env,
                                               const char *workdir, struct kelpie_error **err);

struct klp_guest_main {
    enum klp_main_state state;
    int32_t exit_code, signal;
    uint64_t log_start, log_end; /* absolute offsets of the bytes the guest still has */
};
KELPIE_MUST_USE kelpie_outcome klp_guest_main_start(const struct kelpie_op *op,
                                                    struct klp_guest *guest,
                                                    const char *const *argv, const char *const *env,
                                                    const char *workdir, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_guest_main_status(const struct kelpie_op *op,
                                                     struct klp_guest *guest,
                                                     struct klp_guest_main *out,
                                                     struct kelpie_error **err);
/* Bytes from `offset` on (from log_start if it is gone already). follow: until the main process has
 * ended. `offset` tells each delivery's place. */
KELPIE_MUST_USE kelpie_outcome klp_guest_main_log(
    const struct kelpie_op *op, struct klp_guest *guest, uint64_t offset, bool follow,
    bool (*output)(void *arg, uint64_t offset, bool is_stderr, const void *data, size_t size),
    void *arg, struct klp_guest_main *out, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome klp_guest_main_signal(const struct kelpie_op *op,
                                                     struct klp_guest *guest, int signal,
                                                     struct kelpie_error **err);
/* FREEZE, THAW, SHUTDOWN, PING. */
KELPIE_MUST_USE kelpie_outcome klp_guest_order(const struct kelpie_op *op, struct klp_guest *guest,
                                               uint16_t type, struct kelpie_error **err);

struct klp_unique_request {
    enum klp_unique_case which;
    uint8_t generation[16], entropy[64], machine_id[16], boot_id[16];
    int64_t wall_ns;
    char hostname[64];
};
struct klp_unique_receipt {
    struct {
        uint16_t result; /* 0 = missing, enum klp_unique_result */
        uint16_t evidence_size;
        uint8_t evidence[64];
    } items[KLP_ITEM_COUNT];
    bool duplicate; /* an item came twice */
};
KELPIE_MUST_USE kelpie_outcome klp_guest_unique(const struct kelpie_op *op, struct klp_guest *guest,
                                                const struct klp_unique_request *request,
                                                struct klp_unique_receipt *out,
                                                struct kelpie_error **err);

#endif
