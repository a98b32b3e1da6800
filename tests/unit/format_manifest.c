/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests: all fields there and back, the documented example, and everything that must be
 * refused. */
#include "format_kit.h"

#include "base/crc32.h"
#include "format/manifest.h"

static void set_ref(struct klp_object_ref *ref, uint8_t fill, uint64_t size)
{
    memset(ref->digest.bytes, fill, sizeof(ref->digest.bytes));
    ref->size = size;
}

static char **texts(const char *first, const char *second)
{
    const char *list[] = {first, second, NULL};
    return klp_texts_copy(list);
}

/* As small as a manifest can be. */
static void fill_checkpoint(struct klp_manifest *m)
{
    *m = (struct klp_manifest){.kind = KLP_KIND_CHECKPOINT, .seq = 3, .epoch = 2};
    klp_text_copy(m->id, sizeof(m->id), "000102030405060708090a0b0c0d0e0f");
    klp_text_copy(m->agent.id, sizeof(m->agent.id), "101112131415161718191a1b1c1d1e1f");
    klp_text_copy(m->agent.name, sizeof(m->agent.name), "rex");
    m->created_wall_ns = 1700000000000000000;
    m->agent.vcpus = 1;
    m->agent.memory_bytes = 512u * KLP_MIB;
    set_ref(&m->agent_state, 0xAA, 4096);
    m->env = texts("A=1", NULL);
}

static void fill_machine(struct klp_machine *machine)
{
    *machine = (struct klp_machine){.version = KLP_MACHINE_VERSION,
                                    .arch = KLP_ARCH_X86_64,
                                    .vcpus = 2,
                                    .memory_bytes = 512u * KLP_MIB,
                                    .page_log2 = 12,
                                    .device_count = 1};
    klp_text_copy(machine->backend, sizeof(machine->backend), "qemu");
    klp_text_copy(machine->backend_version, sizeof(machine->backend_version), "7.2.22");
    klp_text_copy(machine->type, sizeof(machine->type), "microvm");
    klp_text_copy(machine->cpu, sizeof(machine->cpu), "max");
    klp_text_copy(machine->devices[0].id, 32, "vs0");
    klp_text_copy(machine->devices[0].kind, 32, "virtio-serial-device");
}

/* Every field set. */
static void fill_teleport(struct klp_manifest *m)
{
    fill_checkpoint(m);
    m->kind = KLP_KIND_TELEPORT;
    m->nonce = 0x1122334455667788;
    klp_text_copy(m->label, sizeof(m->label), "before-lunch");
    memset(m->parent.bytes, 1, KLP_DIGEST_BYTES);
    memset(m->template_.bytes, 2, KLP_DIGEST_BYTES);
    memset(m->generation, 3, sizeof(m->generation));
    m->stored_bytes = 123456789;
    klp_text_copy(m->agent.image, sizeof(m->agent.image), "python");
    klp_text_copy(m->agent.image_version, sizeof(m->agent.image_version), "1.12.65535");
    memset(m->agent.image_digest.bytes, 4, KLP_DIGEST_BYTES);
    klp_text_copy(m->agent.parent, sizeof(m->agent.parent), "mother");
    m->agent.workdir = klp_mem_string("/data");
    m->agent.argv = texts("python3", "");
    m->agent.userspace_rng_hooked = true;
    fill_machine(&m->machine);
    m->region_count = 2;
    m->regions[0] = (struct klp_region){.size = 256u * KLP_MIB, .page_log2 = 12, .frame_log2 = 16};
    m->regions[1] = (struct klp_region){
        .base = 256u * KLP_MIB, .size = 256u * KLP_MIB, .page_log2 = 14, .frame_log2 = 14};
    set_ref(&m->regions[0].map, 5, 999);
    m->pack_count = 2;
    m->packs = klp_mem_alloc(2 * sizeof(*m->packs));
    set_ref(&m->packs[0], 6, KLP_PACK_SIZE_MAX);
    set_ref(&m->packs[1], 7, 1);
    set_ref(&m->device_state, 8, KLP_DEVICE_STATE_MAX);
    set_ref(&m->agent_state, 9, 5);
    klp_texts_free(m->env);
    m->env = texts("A=", "B=x=y");
    m->sealed = KLP_BUF_INIT(100);
    klp_buf_append_text(&m->sealed, "sealed");
    m->signature = KLP_BUF_INIT(100);
    klp_buf_append_text(&m->signature, "signature");
}

static void encode(const struct klp_manifest *m, struct klp_buf *out)
{
    struct kelpie_error *err = NULL;
    if (!klp_manifest_encode(m, out, &err))
        fail_msg("%s", kelpie_error_message(err));
}

static bool decode(const struct klp_buf *bytes, struct klp_manifest *out, struct kelpie_error **err)
{
    uint8_t *copy = kit_copy(bytes->data, bytes->size);
    bool ok = klp_manifest_decode((struct klp_bytes){copy, bytes->size}, out, err);
    free(copy);
    return ok;
}

static void assert_corrupt(const struct klp_buf *bytes, const char *piece)
{
    struct klp_manifest m;
    KIT_REFUSED(decode(bytes, &m, &err), false, KELPIE_E_CORRUPT, piece);
}

/* Decodes, encodes again, and compares. */
static void assert_comes_back(const struct klp_buf *bytes, struct klp_manifest *out)
{
    struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    struct kelpie_error *err = NULL;
    if (!decode(bytes, out, &err))
        fail_msg("%s", kelpie_error_message(err));
    encode(out, &again);
    assert_int_equal(again.size, bytes->size);
    assert_memory_equal(again.data, bytes->data, again.size);
}

#define EXAMPLE_HEX                                                                                \
    "4b4c506d616e6944 0200 0000 40000000 0000000000000000 0000000000000000 0000000000000000"       \
    "01 00 00 00 00 000000 00000000 0000000000000000 "

static const char example_records[] =
    "0100 0100 88000000"
    "0300000000000000 0300000000000000 0200000000000000 00002a36fe9c9717"
    "000102030405060708090a0b0c0d0e0f 00000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000"
    "0300 0100 50000000"
    "0100 0100 20000000 3130313131323133313431353136313731383139316131623163316431653166"
    "0200 0100 03000000 72657800 00000000"
    "0700 0100 10000000 0000002000000000 01000000 00000000"
    "0800 0100 28000000 0010000000000000"
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    "0900 0300 07000000 03000000 413d31 00";

static void test_format_manifest__example_byte_for_byte(void **state)
{
    (void)state;
    struct klp_manifest m, back;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    struct klp_buf want KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    fill_checkpoint(&m);
    encode(&m, &bytes);
    kit_hex(&want, EXAMPLE_HEX);
    klp_buf_append_u32(&want, klp_crc32(0, want.data, 60));
    kit_hex(&want, example_records);
    assert_int_equal(bytes.size, want.size);
    assert_memory_equal(bytes.data, want.data, want.size);
    assert_comes_back(&bytes, &back);
    assert_int_equal(back.created_wall_ns, m.created_wall_ns);
    assert_string_equal(back.env[0], "A=1");
    klp_manifest_finish(&m);
    klp_manifest_finish(&back);
}

static void test_format_manifest__every_field_comes_back(void **state)
{
    (void)state;
    struct klp_manifest m, b;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    fill_teleport(&m);
    encode(&m, &bytes);
    assert_comes_back(&bytes, &b);
    assert_int_equal(b.kind, KLP_KIND_TELEPORT);
    assert_true(b.nonce == m.nonce);
    assert_string_equal(b.label, "before-lunch");
    assert_string_equal(b.id, m.id);
    assert_memory_equal(&b.parent, &m.parent, sizeof(b.parent));
    assert_memory_equal(&b.template_, &m.template_, sizeof(b.template_));
    assert_memory_equal(b.generation, m.generation, 16);
    assert_int_equal(b.stored_bytes, 123456789);
    assert_string_equal(b.agent.id, m.agent.id);
    assert_string_equal(b.agent.image, "python");
    assert_string_equal(b.agent.image_version, "1.12.65535");
    assert_memory_equal(&b.agent.image_digest, &m.agent.image_digest, KLP_DIGEST_BYTES);
    assert_string_equal(b.agent.parent, "mother");
    assert_string_equal(b.agent.workdir, "/data");
    assert_int_equal(klp_texts_count((const char *const *)b.agent.argv), 2);
    assert_string_equal(b.agent.argv[1], "");
    assert_true(b.agent.userspace_rng_hooked);
    assert_int_equal(b.agent.memory_bytes, 512u * KLP_MIB);
    assert_string_equal(b.machine.cpu, "max");
    assert_int_equal(b.region_count, 2);
    assert_memory_equal(&b.regions[0].map, &m.regions[0].map, sizeof(b.regions[0].map));
    assert_int_equal(b.regions[1].frame_log2, 14);
    assert_int_equal(b.pack_count, 2);
    assert_memory_equal(b.packs, m.packs, 2 * sizeof(*b.packs));
    assert_int_equal(b.device_state.size, KLP_DEVICE_STATE_MAX);
    assert_string_equal(b.env[1], "B=x=y");
    assert_string_equal(klp_buf_text(&b.sealed), "sealed");
    assert_string_equal(klp_buf_text(&b.signature), "signature");
    klp_manifest_finish(&m);
    klp_manifest_finish(&b);
}

static void test_format_manifest__appends_to_what_is_there(void **state)
{
    (void)state;
    struct klp_manifest m;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    fill_checkpoint(&m);
    klp_buf_append_text(&bytes, "before");
    encode(&m, &bytes);
    assert_memory_equal(bytes.data, "beforeKLPmani", 13);
    struct klp_buf small KLP_AUTO(buf) = KLP_BUF_INIT(100);
    KIT_REFUSED(klp_manifest_encode(&m, &small, &err), false, KELPIE_E_LIMIT, "manifest");
    klp_manifest_finish(&m);
}

static void test_format_manifest__every_cut_is_refused(void **state)
{
    (void)state;
    struct klp_manifest m, back;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    fill_checkpoint(&m);
    encode(&m, &bytes);
    for (size_t size = 0; size < bytes.size; size++) {
        struct klp_buf cut = bytes;
        cut.size = size;
        struct kelpie_error *err = NULL;
        /* Between the last two records it is a manifest without environment. */
        if (decode(&cut, &back, &err)) {
            assert_null(back.env);
            klp_manifest_finish(&back);
            assert_int_equal(size, bytes.size - 16);
            continue;
        }
        assert_int_equal(kelpie_error_code(err), KELPIE_E_CORRUPT);
        kelpie_error_free(err);
    }
    klp_manifest_finish(&m);
}

static void test_format_manifest__what_passes_a_flip_is_canonical(void **state)
{
    (void)state;
    struct klp_manifest m, back;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    unsigned passed = 0, refused = 0;
    fill_teleport(&m);
    klp_buf_clear(&m.sealed); /* a flip of their tags makes them records to be passed over */
    klp_buf_clear(&m.signature);
    encode(&m, &bytes);
    for (size_t bit = 8 * KLP_OBJECT_HEADER_SIZE; bit < 8 * bytes.size; bit++) {
        bytes.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (!decode(&bytes, &back, NULL)) {
            refused++;
        } else {
            struct klp_buf again KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
            encode(&back, &again);
            assert_int_equal(again.size, bytes.size);
            assert_memory_equal(again.data, bytes.data, again.size);
            klp_manifest_finish(&back);
            passed++; /* a digest, a text: the manifest's own name covers those */
        }
        bytes.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_true(passed > 0 && refused > 0);
    klp_manifest_finish(&m);
}

/* The checkpoint's header and snapshot and agent records, then `hex`. */
static void with_record(struct klp_buf *bytes, const char *hex)
{
    struct klp_manifest m;
    fill_checkpoint(&m);
    encode(&m, bytes);
    klp_manifest_finish(&m);
    kit_hex(bytes, hex);
}

static void test_format_manifest__records_it_does_not_know(void **state)
{
    (void)state;
    struct klp_manifest back;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    with_record(&bytes, "6400 0000 03000000 010203 0000000000");
    assert_true(decode(&bytes, &back, NULL));
    klp_manifest_finish(&back);
    klp_buf_clear(&bytes);
    with_record(&bytes, "6400 0100 03000000 010203 0000000000");
    KIT_REFUSED(decode(&bytes, &back, &err), false, KELPIE_E_UNSUPPORTED, "record 100");
}

static void test_format_manifest__order_duplicates_and_flags(void **state)
{
    (void)state;
    const struct {
        const char *hex, *piece;
    } cases[] = {
        {"0900 0300 08000000 04000000 413d3131", "out of order"}, /* env again */
        {"0200 0100 01000000 61 00000000000000", "out of order"},
        {"0000 0000 00000000", "out of order"},
        {"0a00 0100 01000000 61 00000000000000", "flags of record 10"}, /* critical sealed */
        {"0b00 0200 01000000 61 00000000000000", "flags of record 11"},
        {"0a00 0000 00000000", "sealed"},
        {"6400 0400 00000000", "flags"},
        {"6400 0000 01000000 61 00000000000001", "padding"},
        {"6400 0000 ffffffff", "longer"},
    };
    for (size_t i = 0; i < KLP_COUNT(cases); i++) {
        struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
        with_record(&bytes, cases[i].hex);
        assert_corrupt(&bytes, cases[i].piece);
    }
}

/* Only a header and the records of `hex`. */
static void assert_records_corrupt(const char *hex, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    kit_hex(&bytes, EXAMPLE_HEX);
    klp_buf_append_u32(&bytes, klp_crc32(0, bytes.data, 60));
    kit_hex(&bytes, hex);
    assert_corrupt(&bytes, piece);
}

static void test_format_manifest__malformed_records(void **state)
{
    (void)state;
    assert_records_corrupt("", "missing");
    assert_records_corrupt("0100 0000 00000000", "flags of record 1");
    assert_records_corrupt("0100 0100 00000000", "snapshot");
    assert_records_corrupt("0200 0100 00000000", "label");
    assert_records_corrupt("0200 0100 02000000 6100 000000000000", "NUL");
    assert_records_corrupt("0300 0100 00000000", "agent.size");
    assert_records_corrupt("0300 0100 08000000 0700 0100 00000000", "empty record 7");
    assert_records_corrupt("0300 0100 10000000 0700 0100 08000000 0000000000000000", "agent.size");
    assert_records_corrupt("0300 0100 10000000 0100 0000 01000000 6100000000000000", "flags");
    assert_records_corrupt("0300 0100 10000000 0500 0100 01000000 6100000000000000",
                           "agent.image_digest");
    assert_records_corrupt("0300 0100 10000000 0800 0100 01000000 0000000000000000",
                           "agent.workdir");
    assert_records_corrupt("0300 0100 10000000 0900 0100 05000000 0200000061 000000", "agent.argv");
    assert_records_corrupt("0300 0100 10000000 0900 0100 03000000 6161610000000000", "agent.argv");
    assert_records_corrupt("0300 0100 10000000 0900 0100 05000000 0100000000 000000",
                           "agent.argv"); /* a NUL */
    assert_records_corrupt("0300 0100 10000000 0900 0100 08000000 ffffffff61616161", "agent.argv");
    assert_records_corrupt("0400 0100 00000000", "machine");
    assert_records_corrupt("0500 0100 00000000", "regions");
    assert_records_corrupt("0600 0100 08000000 0000000000000000", "packs");
    assert_records_corrupt("0700 0100 08000000 0100000000000000", "device_state");
    assert_records_corrupt("0900 0300 00000000", "env");
}

static void test_format_manifest__header(void **state)
{
    (void)state;
    struct klp_manifest m;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(2 * KLP_MANIFEST_SIZE_MAX);
    with_record(&bytes, "");
    bytes.data[20] ^= 1;
    assert_corrupt(&bytes, "checksum");
    bytes.data[20] ^= 1;
    bytes.data[3] = 'p';
    assert_corrupt(&bytes, "it is a");
    klp_buf_clear(&bytes);
    assert_non_null(klp_buf_reserve(&bytes, KLP_MANIFEST_SIZE_MAX + 1));
    klp_buf_grow(&bytes, KLP_MANIFEST_SIZE_MAX + 1);
    KIT_REFUSED(klp_manifest_decode(klp_buf_view(&bytes), &m, &err), false, KELPIE_E_CORRUPT,
                "longer");
    KIT_REFUSED(klp_manifest_decode((struct klp_bytes){NULL, 0}, &m, &err), false, KELPIE_E_CORRUPT,
                "header");
}

/* Takes the manifest over. */
static void assert_invalid(struct klp_manifest *m, const char *piece)
{
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    KIT_REFUSED(klp_manifest_encode(m, &bytes, &err), false, KELPIE_E_INVALID, piece);
    assert_int_equal(bytes.size, 0);
    klp_manifest_finish(m);
}

#define ASSERT_FAULT(change, piece)                                                                \
    do {                                                                                           \
        struct klp_manifest m;                                                                     \
        fill_teleport(&m);                                                                         \
        change;                                                                                    \
        assert_invalid(&m, piece);                                                                 \
    } while (0)

static void test_format_manifest__faults_of_the_snapshot(void **state)
{
    (void)state;
    ASSERT_FAULT(m.kind = KLP_KIND_NONE, "kind");
    ASSERT_FAULT(m.kind = KLP_KIND_TEMPLATE + 1, "kind");
    ASSERT_FAULT(m.id[0] = '\0', "id");
    ASSERT_FAULT(m.id[5] = 'F', "id");
    ASSERT_FAULT(m.seq = UINT64_MAX, "seq");
    ASSERT_FAULT(m.epoch = (uint64_t)INT64_MAX + 1, "epoch");
    ASSERT_FAULT(m.stored_bytes = UINT64_MAX, "stored_bytes");
    ASSERT_FAULT(m.label[0] = '-', "label");
    ASSERT_FAULT(m.machine.version = 0, "machine");
    ASSERT_FAULT(m.machine.backend[0] = ',', "machine");
    ASSERT_FAULT(m.kind = KLP_KIND_CHECKPOINT, "machine");
    ASSERT_FAULT((m.kind = KLP_KIND_CHECKPOINT, m.machine.version = 0), "memory");
    ASSERT_FAULT((m.kind = KLP_KIND_CHECKPOINT, m.machine.version = 0, m.region_count = 0),
                 "memory"); /* device state */
    ASSERT_FAULT((m.kind = KLP_KIND_CHECKPOINT, m.machine.version = 0, m.region_count = 0,
                  m.device_state = (struct klp_object_ref){0},
                  m.agent_state = (struct klp_object_ref){0}),
                 "agent_state");
}

static void test_format_manifest__faults_of_the_agent(void **state)
{
    (void)state;
    ASSERT_FAULT(m.agent.id[0] = '\0', "agent.id");
    ASSERT_FAULT(m.agent.name[0] = '\0', "agent.name is missing");
    ASSERT_FAULT(m.agent.name[0] = '/', "agent.name");
    ASSERT_FAULT(m.agent.image[0] = '.', "agent.image");
    ASSERT_FAULT(m.agent.parent[0] = '.', "agent.parent");
    ASSERT_FAULT(m.agent.image_version[0] = 'v', "agent.image_version");
    ASSERT_FAULT(m.agent.vcpus = KLP_VCPUS_MAX + 1, "agent.vcpus");
    ASSERT_FAULT(m.agent.memory_bytes = UINT64_MAX, "agent.memory_bytes");
    ASSERT_FAULT((klp_mem_free(m.env[0]), m.env[0] = klp_mem_string("NOVALUE")), "env");
    ASSERT_FAULT((klp_mem_free(m.env[0]), m.env[0] = klp_mem_string("=x")), "env");
    struct klp_manifest m; /* a template belongs to nobody */
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    fill_teleport(&m);
    m.kind = KLP_KIND_TEMPLATE;
    m.agent.id[0] = m.agent.name[0] = '\0';
    encode(&m, &bytes);
    klp_manifest_finish(&m);
    assert_comes_back(&bytes, &m);
    klp_manifest_finish(&m);
}

static void test_format_manifest__faults_of_the_objects(void **state)
{
    (void)state;
    ASSERT_FAULT(m.region_count = KLP_REGIONS_MAX + 1, "regions");
    ASSERT_FAULT(m.regions[0].page_log2 = 5, "page_log2");
    ASSERT_FAULT(m.regions[0].page_log2 = 17, "page_log2");
    ASSERT_FAULT(m.regions[0].frame_log2 = 11, "frame_log2");
    ASSERT_FAULT(m.regions[0].frame_log2 = 17, "frame_log2");
    ASSERT_FAULT(m.regions[0].frame_log2 = 255, "frame_log2");
    ASSERT_FAULT(m.regions[0].page_log2 = 6, "frame_log2");
    ASSERT_FAULT(m.regions[0].size = 0, "region.size");
    ASSERT_FAULT(m.regions[0].size++, "region.size");
    ASSERT_FAULT(m.regions[1].base -= 16384, "region.base"); /* overlap */
    ASSERT_FAULT(m.regions[1].base += 4096, "region.base");  /* pages of 16 KiB */
    ASSERT_FAULT(m.regions[1].base = UINT64_MAX - 16383, "region.base");
    ASSERT_FAULT(m.regions[1].size = (uint64_t)1 << 40, "region.size");
    ASSERT_FAULT(m.regions[1].size = (uint64_t)32 << 30, "in all");
    ASSERT_FAULT(m.regions[0].map.size = 0, "region.map");
    ASSERT_FAULT(memset(&m.regions[0].map.digest, 0, 32), "region.map");
    ASSERT_FAULT(m.packs[1].size = 0, "pack");
    ASSERT_FAULT(m.packs[0].size++, "pack");
    ASSERT_FAULT(memset(&m.packs[1].digest, 0, 32), "pack");
    ASSERT_FAULT(m.device_state.size += 65, "device_state");
    ASSERT_FAULT(m.agent_state.size = KLP_AGENT_STATE_MAX + 1, "agent_state");
}

/* The same faults in bytes from elsewhere are CORRUPT: one of each check suffices, it is one check.
 */
static void test_format_manifest__faults_in_bytes_are_corrupt(void **state)
{
    (void)state;
    struct klp_manifest m;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    fill_checkpoint(&m);
    encode(&m, &bytes);
    klp_manifest_finish(&m);
    bytes.data[KLP_OBJECT_HEADER_SIZE + 8] = 2; /* now a teleport, without a machine */
    assert_corrupt(&bytes, "machine is missing");
    bytes.data[KLP_OBJECT_HEADER_SIZE + 8] = 5;
    assert_corrupt(&bytes, "kind");
    bytes.data[KLP_OBJECT_HEADER_SIZE + 8] = 3;
    bytes.data[bytes.size - 3] = 'x'; /* A=1 -> Ax1 */
    assert_corrupt(&bytes, "env");
}

static void test_format_manifest__lists_are_bounded(void **state)
{
    (void)state;
    struct klp_manifest m;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(2 * KLP_MANIFEST_SIZE_MAX);
    fill_checkpoint(&m);
    m.agent.argv = klp_mem_alloc((KLP_ARGV_MAX + 2) * sizeof(char *));
    for (size_t i = 0; i < KLP_ARGV_MAX; i++)
        m.agent.argv[i] = klp_mem_string("x");
    encode(&m, &bytes);
    m.agent.argv[KLP_ARGV_MAX] = klp_mem_string("x");
    KIT_REFUSED(klp_manifest_encode(&m, &bytes, &err), false, KELPIE_E_INVALID, "agent.argv");
    klp_texts_free(m.agent.argv);
    m.agent.argv = texts("x", NULL);
    klp_mem_free(m.agent.argv[0]);
    m.agent.argv[0] = klp_mem_alloc(KLP_ARG_BYTES_MAX + 1);
    memset(m.agent.argv[0], 'x', KLP_ARG_BYTES_MAX);
    assert_invalid(&m, "agent.argv");
}

static void test_format_manifest__most_packs(void **state)
{
    (void)state;
    struct klp_manifest m, back;
    struct klp_buf bytes KLP_AUTO(buf) = KLP_BUF_INIT(KLP_MANIFEST_SIZE_MAX);
    fill_teleport(&m);
    klp_mem_free(m.packs);
    m.pack_count = KLP_PACKS_MAX;
    m.packs = klp_mem_alloc((KLP_PACKS_MAX + 1) * sizeof(*m.packs));
    for (size_t i = 0; i <= KLP_PACKS_MAX; i++)
        set_ref(&m.packs[i], (uint8_t)(1 + i % 255), 1 + i);
    encode(&m, &bytes);
    assert_comes_back(&bytes, &back);
    assert_int_equal(back.packs[KLP_PACKS_MAX - 1].size, KLP_PACKS_MAX);
    klp_manifest_finish(&back);
    m.pack_count++;
    assert_invalid(&m, "packs");
}

static void test_format_manifest__kinds(void **state)
{
    (void)state;
    for (int kind = KLP_KIND_SUSPEND; kind <= KLP_KIND_TEMPLATE; kind++)
        assert_int_equal(klp_kind_parse(klp_kind_name((enum klp_snapshot_kind)kind)), kind);
    assert_string_equal(klp_kind_name(KLP_KIND_CHECKPOINT), "checkpoint");
    assert_string_equal(klp_kind_name(99), "none");
    assert_int_equal(klp_kind_parse("none"), KLP_KIND_NONE);
    assert_int_equal(klp_kind_parse("Suspend"), KLP_KIND_NONE);
    assert_int_equal(klp_kind_parse(NULL), KLP_KIND_NONE);
}

static void test_format_manifest__identity_copies_share_nothing(void **state)
{
    (void)state;
    struct klp_manifest m;
    struct klp_agent_identity copy;
    fill_teleport(&m);
    assert_true(klp_identity_copy(&m.agent, &copy, NULL));
    assert_ptr_not_equal(copy.workdir, m.agent.workdir);
    assert_ptr_not_equal(copy.argv[0], m.agent.argv[0]);
    klp_manifest_finish(&m);
    assert_string_equal(copy.argv[0], "python3");
    assert_string_equal(copy.workdir, "/data");
    klp_identity_finish(&copy);
    assert_null(klp_texts_copy(NULL));
    assert_int_equal(klp_texts_count(NULL), 0);
    klp_texts_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_manifest__example_byte_for_byte),
        cmocka_unit_test(test_format_manifest__every_field_comes_back),
        cmocka_unit_test(test_format_manifest__appends_to_what_is_there),
        cmocka_unit_test(test_format_manifest__every_cut_is_refused),
        cmocka_unit_test(test_format_manifest__what_passes_a_flip_is_canonical),
        cmocka_unit_test(test_format_manifest__records_it_does_not_know),
        cmocka_unit_test(test_format_manifest__order_duplicates_and_flags),
        cmocka_unit_test(test_format_manifest__malformed_records),
        cmocka_unit_test(test_format_manifest__header),
        cmocka_unit_test(test_format_manifest__faults_of_the_snapshot),
        cmocka_unit_test(test_format_manifest__faults_of_the_agent),
        cmocka_unit_test(test_format_manifest__faults_of_the_objects),
        cmocka_unit_test(test_format_manifest__faults_in_bytes_are_corrupt),
        cmocka_unit_test(test_format_manifest__lists_are_bounded),
        cmocka_unit_test(test_format_manifest__most_packs),
        cmocka_unit_test(test_format_manifest__kinds),
        cmocka_unit_test(test_format_manifest__identity_copies_share_nothing),
    };
    return cmocka_run_group_tests_name("format_manifest", tests, NULL, NULL);
}
