/* SPDX-License-Identifier: Apache-2.0 */
/* A store in a temporary folder and captures made by hand, for the tests of snapshot/. */
#ifndef TESTS_UNIT_SNAPSHOT_KIT_H
#define TESTS_UNIT_SNAPSHOT_KIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "env/posix/posix.h"
#include "snapshot/snapshot.h"
#include "store/local/local.h"

#define PAGE 4096u

struct kit {
    struct klp_env *env;
    struct klp_store *store;
    struct klp_snapshots snapshots;
    struct kelpie_op op;
    char path[64];
};

static inline int kit_setup(void **state)
{
    struct kit *kit = calloc(1, sizeof(*kit));
    struct klp_env_posix_options options = {.program = "test", .level = KLP_LOG_ERROR};
    assert_true(klp_env_posix_create(&options, &kit->env, NULL));
    strcpy(kit->path, "/tmp/kelpie-test-XXXXXX");
    assert_non_null(mkdtemp(kit->path));
    assert_true(klp_store_local_create(kit->env, kit->path, &kit->store, NULL));
    kit->snapshots = (struct klp_snapshots){kit->env, kit->store, 2};
    kit->op = klp_op_plain(kit->env, 60000);
    *state = kit;
    return 0;
}

static inline int kit_teardown(void **state)
{
    struct kit *kit = *state;
    struct klp_dir *dir;
    klp_store_destroy(kit->store);
    assert_true(klp_dir_open(kit->env, "/tmp", false, &dir, NULL));
    assert_true(klp_dir_remove_tree(dir, kit->path + strlen("/tmp/"), NULL));
    klp_dir_close(dir);
    klp_env_posix_destroy(kit->env);
    free(kit);
    return 0;
}

/* Page `page` of content `seed`: random-looking, or zero where seed is 0. */
static inline void kit_page(uint8_t *out, uint64_t page, uint64_t seed)
{
    uint64_t x = page * 0x9e3779b97f4a7c15u + seed * 0xbf58476d1ce4e5b9u + 1;
    for (size_t i = 0; i < PAGE; i += 8) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        uint64_t value = seed == 0          ? 0
                         : (i / 8) % 4 == 0 ? x
                                            : seed; /* compressible to about a quarter */
        memcpy(out + i, &value, 8);
    }
}

struct kit_capture { /* pages to be written into a capture's dirty layer */
    uint64_t size_pages;
    struct klp_capture capture;
};

static inline void kit_capture_begin(struct kit *kit, uint64_t size_pages, struct kit_capture *out)
{
    memset(out, 0, sizeof(*out));
    out->size_pages = size_pages;
    assert_true(klp_layer_create(kit->env, size_pages * PAGE, 12, &out->capture.dirty, NULL));
    out->capture.device_state = KLP_BUF_INIT(KLP_DEVICE_STATE_MAX);
    klp_buf_append_text(&out->capture.device_state, "device state");
    struct klp_machine *machine = &out->capture.machine;
    *machine = (struct klp_machine){.version = KLP_MACHINE_VERSION,
                                    .arch = KLP_ARCH_X86_64,
                                    .vcpus = 1,
                                    .memory_bytes = size_pages * PAGE,
                                    .page_log2 = 12};
    strcpy(machine->backend, "mock");
    strcpy(machine->backend_version, "1");
    strcpy(machine->type, "mock");
    strcpy(machine->cpu, "mock");
}

static inline void kit_put(struct kit_capture *capture, uint64_t page, uint64_t seed)
{
    uint8_t bytes[PAGE];
    kit_page(bytes, page, seed);
    assert_true(klp_layer_write(capture->capture.dirty, page * PAGE, bytes, PAGE, NULL));
}

static inline void kit_identity(struct klp_agent_identity *out, uint64_t size_pages)
{
    *out = (struct klp_agent_identity){.vcpus = 1, .memory_bytes = size_pages * PAGE};
    strcpy(out->id, "00112233445566778899aabbccddeeff");
    strcpy(out->name, "agent");
    strcpy(out->image, "base");
    strcpy(out->image_version, "1.0.0");
}

/* Writes and publishes; `parent` may be NULL. The capture stays the caller's, sealed. */
static inline kelpie_outcome kit_write(struct kit *kit, struct kit_capture *capture,
                                       const struct klp_snapshot_parent *parent,
                                       struct klp_manifest *out, struct klp_digest *digest,
                                       struct kelpie_error **err)
{
    struct klp_agent_identity identity;
    static uint64_t seq;
    kit_identity(&identity, capture->size_pages);
    struct klp_snapshot_request request = {
        .kind = KLP_KIND_TELEPORT, .label = "", .identity = &identity, .seq = ++seq, .epoch = 1};
    if (parent != NULL)
        request.parent = *parent;
    if (!klp_layer_is_sealed(capture->capture.dirty))
        assert_true(klp_layer_seal(capture->capture.dirty, NULL));
    kelpie_outcome outcome =
        klp_snapshot_write(&kit->op, &kit->snapshots, &capture->capture, &request, out, err);
    if (!kelpie_is_ok(outcome))
        return outcome;
    outcome = klp_snapshot_publish(&kit->op, &kit->snapshots, out, digest, err);
    if (!kelpie_is_ok(outcome))
        klp_manifest_finish(out);
    return outcome;
}

static inline void kit_expect_page(struct klp_layer *layer, uint64_t page, uint64_t seed)
{
    uint8_t expected[PAGE], actual[PAGE];
    kit_page(expected, page, seed);
    assert_true(klp_layer_read(layer, page * PAGE, actual, PAGE, NULL));
    if (memcmp(expected, actual, PAGE) != 0)
        fail_msg("page %llu is not of seed %llu", (unsigned long long)page,
                 (unsigned long long)seed);
}

#endif
