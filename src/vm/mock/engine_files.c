/* SPDX-License-Identifier: Apache-2.0 */
/* The mock guest's files, a small table over an area of its memory; and the uniqueness of its
 * little world. */
#include <string.h>

#include "base/crc32.h"
#include "base/fmt.h"
#include "vm/mock/engine.h"

/* "/a//b/" and "a/b" are the same file. */
static bool path_clean(char out[256], const char *folder, const char *path)
{
    size_t size = 0;
    const char *parts[2] = {folder, path};
    for (size_t part = 0; part < 2; part++) {
        for (const char *at = parts[part]; *at != 0;) {
            size_t length = 0;
            while (at[length] != 0 && at[length] != '/')
                length++;
            bool skip = length == 0 || (length == 1 && at[0] == '.');
            if (!skip && size + length + 2 > 256)
                return false;
            if (!skip) {
                out[size++] = '/';
                memcpy(out + size, at, length);
                size += length;
            }
            at += length + (at[length] == '/' ? 1 : 0);
        }
    }
    if (size == 0)
        out[size++] = '/';
    out[size] = 0;
    return true;
}

struct mock_file *mock_file_find(struct mock_engine *engine, const char *path)
{
    char clean[256];
    if (!path_clean(clean,
                    engine->state->workdir[0] != 0 && path[0] != '/' ? engine->state->workdir : "",
                    path))
        return NULL;
    for (size_t i = 0; i < MOCK_FILES_MAX; i++)
        if (strcmp(engine->state->files[i].path, clean) == 0)
            return &engine->state->files[i];
    return NULL;
}

/* ---- put */

/* No two share bytes: closing gaps relies on it. */
static bool files_are_apart(const struct mock_state *state)
{
    for (size_t i = 0; i < MOCK_FILES_MAX; i++)
        for (size_t k = 0; k < i; k++) {
            const struct mock_file *a = &state->files[i], *b = &state->files[k];
            if (a->reserved > 0 && b->reserved > 0 && a->offset < b->offset + b->reserved &&
                b->offset < a->offset + a->reserved)
                return false;
        }
    return true;
}

/* Closes the gaps that replaced files left: the files in the order they lie in. */
static void area_compact(struct mock_engine *engine)
{
    struct mock_file *files = engine->state->files;
    uint64_t area_size, used = 0;
    uint8_t *area = mock_file_area(engine, &area_size);
    for (;;) {
        struct mock_file *next = NULL; /* the first that does not lie below `used` yet */
        for (size_t i = 0; i < MOCK_FILES_MAX; i++)
            if (files[i].path[0] != 0 && files[i].reserved > 0 && files[i].offset >= used &&
                (next == NULL || files[i].offset < next->offset))
                next = &files[i];
        if (next == NULL)
            break;
        memmove(area + used, area + next->offset, (size_t)next->size);
        next->offset = used;
        used += next->reserved;
    }
    engine->state->files_used = used;
}

bool mock_files_are_sound(struct mock_engine *engine)
{
    const struct mock_state *state = engine->state;
    uint64_t area_size;
    mock_file_area(engine, &area_size);
    if (state->files_used > area_size)
        return false;
    for (size_t i = 0; i < MOCK_FILES_MAX; i++) {
        const struct mock_file *file = &state->files[i];
        if (mock_text_ends(file->path, sizeof(file->path)) &&
            mock_text_ends(file->target, sizeof(file->target)) && file->size <= file->reserved &&
            file->reserved <= state->files_used &&
            file->offset <= state->files_used - file->reserved)
            continue;
        return false;
    }
    return files_are_apart(state);
}

static struct mock_file *file_make(struct mock_engine *engine, const char *path,
                                   const struct klp_tar_entry *entry)
{
    struct mock_state *state = engine->state;
    uint64_t area_size, wanted = entry->kind == KLP_TAR_FILE ? entry->size : 0;
    struct mock_file *file = mock_file_find(engine, path);
    mock_file_area(engine, &area_size);
    for (size_t i = 0; file == NULL && i < MOCK_FILES_MAX; i++)
        if (state->files[i].path[0] == 0)
            file = &state->files[i];
    if (file == NULL || strlen(entry->target) >= sizeof(file->target))
        return NULL;
    *file = (struct mock_file){.path = ""}; /* what was there is given up first */
    if (wanted > area_size - state->files_used)
        area_compact(engine);
    if (wanted > area_size - state->files_used)
        return NULL;
    *file = (struct mock_file){
        .kind = entry->kind, .mode = entry->mode, .offset = state->files_used, .reserved = wanted};
    klp_text_copy(file->path, sizeof(file->path), path);
    klp_text_copy(file->target, sizeof(file->target), entry->target);
    state->files_used += wanted;
    return file;
}

void mock_put_begin(struct mock_engine *engine, const struct klp_guest_frame *frame)
{
    struct klp_bytes path;
    if (!klp_field_find(frame->body, KLP_TAG_PATH, &path) || path.size == 0 || path.size > 200) {
        mock_error(engine, frame->channel, KELPIE_E_INVALID, "PUT needs a path of 1 to 200 bytes");
        return;
    }
    struct mock_channel *channel = mock_channel_open(engine, frame->channel, MOCK_PUT);
    if (channel == NULL)
        return;
    channel->path = klp_mem_string_n((const char *)path.data, path.size);
    channel->tar = klp_tar_reader_create(engine->memory_size);
}

static bool put_event(struct mock_engine *engine, struct mock_channel *channel,
                      enum klp_tar_event event, const struct klp_tar_entry *entry,
                      struct klp_bytes content)
{
    uint64_t area_size;
    if (event == KLP_TAR_ENTRY) {
        char path[256];
        if (!path_clean(path, channel->path, entry->path))
            return false;
        channel->file = file_make(engine, path, entry);
        return channel->file != NULL;
    }
    if (event == KLP_TAR_CONTENT && channel->file != NULL) {
        struct mock_file *file = channel->file;
        if (content.size > file->reserved - file->size) /* somebody else put it anew meanwhile */
            return false;
        memcpy(mock_file_area(engine, &area_size) + file->offset + file->size, content.data,
               content.size);
        file->size += content.size;
    }
    return true;
}

void mock_put_data(struct mock_engine *engine, struct mock_channel *channel, struct klp_bytes data,
                   bool end)
{
    struct kelpie_error *error = NULL;
    enum klp_tar_event event = KLP_TAR_NEED_MORE;
    bool fits = true;
    while (fits && (data.size > 0 || event != KLP_TAR_NEED_MORE) && event != KLP_TAR_END &&
           event != KLP_TAR_BAD) {
        const struct klp_tar_entry *entry;
        struct klp_bytes content;
        event = klp_tar_next(channel->tar, &data, &entry, &content, &error);
        fits = put_event(engine, channel, event, entry, content);
        if (event == KLP_TAR_NEED_MORE)
            break;
    }
    channel->tar_ended = channel->tar_ended || event == KLP_TAR_END;
    if (event == KLP_TAR_BAD)
        mock_error(engine, channel->id, kelpie_error_code(error), kelpie_error_message(error));
    else if (!fits)
        mock_error(engine, channel->id, KELPIE_E_NO_SPACE, "no room for that file in a mock guest");
    else if (end && !channel->tar_ended)
        mock_error(engine, channel->id, KELPIE_E_CORRUPT, "the archive is cut off");
    else if (end)
        mock_done(engine, channel->id);
    if (event == KLP_TAR_BAD || !fits || end)
        mock_channel_close(channel);
    klp_error_clear(&error);
}

/* ---- get: made as it is sent */

static bool below(const char *path, const char *folder)
{
    size_t size = strlen(folder);
    if (strcmp(folder, "/") == 0)
        return true;
    return strncmp(path, folder, size) == 0 && (path[size] == 0 || path[size] == '/');
}

static bool is_packed(const struct mock_channel *channel, const struct mock_file *file)
{
    return file->path[0] != 0 && file->path[1] != 0 && below(file->path, channel->path);
}

static void header_make(struct mock_channel *channel, const struct mock_file *file)
{
    struct klp_tar_entry *entry = klp_mem_alloc(sizeof(*entry));
    entry->kind = (enum klp_tar_kind)file->kind;
    entry->mode = file->mode;
    entry->size = file->kind == KLP_TAR_FILE ? file->size : 0;
    klp_text_copy(entry->path, sizeof(entry->path), file->path + channel->name_cut);
    klp_text_copy(entry->target, sizeof(entry->target), file->target);
    if (klp_tar_header_append(&channel->out, entry, NULL)) { /* names were checked when they came */
        channel->from = file;
        channel->from_at = 0;
        channel->from_size = entry->size;
    }
    klp_mem_free(entry);
}

/* As many bytes as its header promised, whatever became of the file since. */
static void content_make(struct mock_engine *engine, struct mock_channel *channel)
{
    static const uint8_t zeros[KLP_TAR_BLOCK];
    uint64_t area_size, left = channel->from_size - channel->from_at;
    const uint8_t *area = mock_file_area(engine, &area_size);
    const struct mock_file *file = channel->from;
    uint64_t there = file->size > channel->from_at ? file->size - channel->from_at : 0;
    const uint8_t *bytes = there > 0 ? area + file->offset + channel->from_at : zeros;
    uint64_t most = there > 0 ? there : sizeof(zeros);
    uint64_t size = left < most ? left : most;
    size = size < KLP_FRAME_BODY_MAX ? size : KLP_FRAME_BODY_MAX;
    klp_buf_append(&channel->out, bytes, (size_t)size);
    channel->from_at += size;
    if (channel->from_at < channel->from_size)
        return;
    if (channel->packs)
        klp_buf_append(&channel->out, zeros, klp_tar_padding(channel->from_size));
    channel->from = NULL;
    channel->sends = channel->packs;
}

void mock_files_make(struct mock_engine *engine, struct mock_channel *channel)
{
    while (channel->sends && channel->out.size < KLP_FRAME_BODY_MAX) {
        if (channel->from != NULL) {
            content_make(engine, channel);
        } else if (channel->next_slot < MOCK_FILES_MAX) {
            const struct mock_file *file = &engine->state->files[channel->next_slot++];
            if (is_packed(channel, file))
                header_make(channel, file);
        } else {
            klp_tar_end_append(&channel->out);
            channel->sends = false;
        }
    }
}

static bool packs_any(const struct mock_engine *engine, const struct mock_channel *channel)
{
    for (size_t i = 0; i < MOCK_FILES_MAX; i++)
        if (is_packed(channel, &engine->state->files[i]))
            return true;
    return false;
}

static void archive_begin(struct mock_engine *engine, uint32_t id, const char *folder,
                          size_t name_cut, bool may_be_empty)
{
    struct mock_channel *channel = mock_channel_open(engine, id, MOCK_SEND);
    if (channel == NULL)
        return;
    channel->path = klp_mem_string(folder);
    channel->name_cut = name_cut;
    channel->sends = channel->packs = channel->ended = channel->is_done = true;
    if (!may_be_empty && !packs_any(engine, channel)) {
        mock_error(engine, id, KELPIE_E_NOT_FOUND, "no such file in the guest");
        mock_channel_close(channel);
    }
}

/* Names as `tar -C parent name` gives them; of a checkpoint from the root, so that they go back to
 * where they were. */
void mock_get_begin(struct mock_engine *engine, const struct klp_guest_frame *frame,
                    bool checkpoint)
{
    struct klp_bytes wanted;
    char raw[256], folder[256];
    size_t cut = 1;
    if (checkpoint) {
        archive_begin(engine, frame->channel, "/", cut, true);
        return;
    }
    if (!klp_field_find(frame->body, KLP_TAG_PATH, &wanted) || wanted.size == 0 ||
        wanted.size > 200) {
        mock_error(engine, frame->channel, KELPIE_E_INVALID, "GET needs a path of 1 to 200 bytes");
        return;
    }
    klp_format(raw, sizeof(raw), "%.*s", (int)wanted.size, (const char *)wanted.data);
    if (!path_clean(folder, raw[0] != '/' ? engine->state->workdir : "", raw)) {
        mock_error(engine, frame->channel, KELPIE_E_NOT_FOUND, "no such file in the guest");
        return;
    }
    for (size_t i = 0; folder[i] != 0; i++)
        if (folder[i] == '/')
            cut = i + 1; /* names begin at the last part */
    archive_begin(engine, frame->channel, folder, cut, false);
}

/* ---- uniqueness: the mock world's own random state, clock and identity */

static void rng_step(uint8_t rng[32], const uint8_t *mixed, size_t size)
{
    uint32_t lanes[8];
    memcpy(lanes, rng, 32);
    for (unsigned lane = 0; lane < 8; lane++) {
        uint32_t crc = klp_crc32(lanes[lane] + lane, mixed, size);
        lanes[lane] = klp_crc32(crc, lanes, sizeof(lanes)) * 2654435761u + lane;
    }
    memcpy(rng, lanes, 32);
}

static void item(struct klp_buf *fields, enum klp_unique_item which, enum klp_unique_result result,
                 const void *evidence, size_t size)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf value = KLP_BUF_INIT(KLP_KIB);
    klp_buf_append_u16(&value, (uint16_t)which);
    klp_buf_append_u16(&value, (uint16_t)result);
    klp_buf_append(&value, evidence, size);
    klp_field_append(fields, KLP_TAG_ITEM, value.data, value.size);
}

static bool bytes_take(struct klp_bytes body, uint16_t tag, void *out, size_t size)
{
    struct klp_bytes value;
    if (!klp_field_find(body, tag, &value) || value.size != size)
        return false;
    memcpy(out, value.data, size);
    return true;
}

static enum klp_unique_result item_result(bool applies, bool taken)
{
    if (!applies)
        return KLP_UNIQUE_NOT_APPLICABLE;
    return taken ? KLP_UNIQUE_DONE : KLP_UNIQUE_FAILED;
}

void mock_unique(struct mock_engine *engine, const struct klp_guest_frame *frame, int64_t wall_ns)
{
    struct mock_state *state = engine->state;
    uint64_t which = 0, told_ns = 0;
    uint8_t entropy[64], generation[16];
    struct klp_bytes hostname;
    bool fork_case, keeps_boot, machine_taken = false, boot_taken = false, name_taken = false;
    if (!klp_field_u64(frame->body, KLP_TAG_CASE, 0, &which, NULL) || which < KLP_UNIQUE_MOVE ||
        which > KLP_UNIQUE_FORK ||
        !klp_field_u64(frame->body, KLP_TAG_WALL_NS, 0, &told_ns, NULL) || told_ns == 0 ||
        !bytes_take(frame->body, KLP_TAG_GENERATION, generation, sizeof(generation)) ||
        !bytes_take(frame->body, KLP_TAG_ENTROPY, entropy, sizeof(entropy))) {
        mock_error(engine, frame->channel, KELPIE_E_PROTOCOL, "UNIQUE is not complete");
        return;
    }
    fork_case = which == KLP_UNIQUE_FORK;
    keeps_boot = which == KLP_UNIQUE_MOVE;
    memcpy(state->generation, generation, sizeof(generation));
    state->has_generation = 1;
    rng_step(state->rng, entropy, sizeof(entropy));
    state->clock_offset_ns = (int64_t)told_ns - wall_ns;
    if (fork_case)
        machine_taken = bytes_take(frame->body, KLP_TAG_MACHINE_ID, state->machine_id, 16);
    if (!keeps_boot)
        boot_taken = bytes_take(frame->body, KLP_TAG_BOOT_ID, state->boot_id, 16);
    if (fork_case && klp_field_find(frame->body, KLP_TAG_HOSTNAME, &hostname) &&
        hostname.size < sizeof(state->hostname)) {
        klp_format(state->hostname, sizeof(state->hostname), "%.*s", (int)hostname.size,
                   (const char *)hostname.data);
        name_taken = true;
    }

    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(8 * KLP_KIB);
    int64_t now = wall_ns + state->clock_offset_ns;
    uint8_t clock[8];
    for (unsigned i = 0; i < 8; i++)
        clock[i] = (uint8_t)((uint64_t)now >> (8 * i));
    item(&fields, KLP_ITEM_GENERATION, KLP_UNIQUE_DONE, state->generation, 16);
    item(&fields, KLP_ITEM_KERNEL_RNG, KLP_UNIQUE_DONE, state->rng, sizeof(state->rng));
    item(&fields, KLP_ITEM_HWRNG, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    item(&fields, KLP_ITEM_CLOCK, KLP_UNIQUE_DONE, clock, sizeof(clock));
    item(&fields, KLP_ITEM_MACHINE_ID, item_result(fork_case, machine_taken), state->machine_id,
         16);
    item(&fields, KLP_ITEM_BOOT_ID, item_result(!keeps_boot, boot_taken), state->boot_id, 16);
    item(&fields, KLP_ITEM_HOSTNAME, item_result(fork_case, name_taken), state->hostname,
         strlen(state->hostname));
    item(&fields, KLP_ITEM_SEED_FILES, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    item(&fields, KLP_ITEM_SSH_KEYS, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    item(&fields, KLP_ITEM_HOOKS, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    mock_frame(engine, KLP_GUEST_RECEIPT, 0, frame->channel, &fields);
}
