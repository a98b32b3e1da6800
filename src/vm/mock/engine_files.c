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

static struct mock_file *file_make(struct mock_engine *engine, const char *path,
                                   const struct klp_tar_entry *entry)
{
    uint64_t area_size;
    struct mock_file *file = mock_file_find(engine, path), *free_file = NULL;
    mock_file_area(engine, &area_size);
    for (size_t i = 0; file == NULL && i < MOCK_FILES_MAX && free_file == NULL; i++)
        if (engine->state->files[i].path[0] == 0)
            free_file = &engine->state->files[i];
    if (file == NULL)
        file = free_file;
    if (file == NULL || entry->size > area_size - engine->state->files_used ||
        strlen(entry->target) >= sizeof(file->target))
        return NULL;
    *file = (struct mock_file){
        .kind = entry->kind, .mode = entry->mode, .offset = engine->state->files_used};
    klp_text_copy(file->path, sizeof(file->path), path);
    klp_text_copy(file->target, sizeof(file->target), entry->target);
    engine->state->files_used += entry->size;
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
        memcpy(mock_file_area(engine, &area_size) + channel->file->offset + channel->file->size,
               content.data, content.size);
        channel->file->size += content.size;
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

/* ---- get: small enough to be made at once */

static bool below(const char *path, const char *folder)
{
    size_t size = strlen(folder);
    if (strcmp(folder, "/") == 0)
        return true;
    return strncmp(path, folder, size) == 0 && (path[size] == 0 || path[size] == '/');
}

static bool file_pack(struct mock_engine *engine, const struct mock_file *file, const char *name,
                      struct klp_buf *out)
{
    uint64_t area_size;
    struct klp_tar_entry *entry = klp_mem_alloc(sizeof(*entry));
    entry->kind = (enum klp_tar_kind)file->kind;
    entry->mode = file->mode;
    entry->size = file->kind == KLP_TAR_FILE ? file->size : 0;
    klp_text_copy(entry->path, sizeof(entry->path), name);
    klp_text_copy(entry->target, sizeof(entry->target), file->target);
    bool fine = klp_tar_header_append(out, entry, NULL);
    if (fine && entry->size > 0) {
        static const uint8_t zeros[KLP_TAR_BLOCK];
        klp_buf_append(out, mock_file_area(engine, &area_size) + file->offset, file->size);
        klp_buf_append(out, zeros, klp_tar_padding(file->size));
    }
    klp_mem_free(entry);
    return fine;
}

/* Names as `tar -C parent name` gives them; of a checkpoint from the root, so that they go back to
 * where they were. */
void mock_get_begin(struct mock_engine *engine, const struct klp_guest_frame *frame,
                    bool checkpoint)
{
    struct klp_bytes wanted;
    char raw[256] = "/", folder[256];
    if (!checkpoint) {
        if (!klp_field_find(frame->body, KLP_TAG_PATH, &wanted) || wanted.size == 0 ||
            wanted.size > 200) {
            mock_error(engine, frame->channel, KELPIE_E_INVALID,
                       "GET needs a path of 1 to 200 bytes");
            return;
        }
        klp_format(raw, sizeof(raw), "%.*s", (int)wanted.size, (const char *)wanted.data);
    }
    bool relative = raw[0] != '/';
    struct mock_channel *channel = mock_channel_open(engine, frame->channel, MOCK_SEND);
    if (channel == NULL)
        return;
    size_t packed = 0, cut = 1;
    bool fine = path_clean(folder, relative ? engine->state->workdir : "", raw);
    for (size_t i = 0; !checkpoint && fine && folder[i] != 0; i++)
        if (folder[i] == '/')
            cut = i + 1; /* names begin at the last part */
    for (size_t i = 0; fine && i < MOCK_FILES_MAX; i++) {
        const struct mock_file *file = &engine->state->files[i];
        if (file->path[0] == 0 || file->path[1] == 0 || !below(file->path, folder))
            continue;
        fine = file_pack(engine, file, file->path + cut, &channel->out);
        packed++;
    }
    if (!fine || (packed == 0 && !checkpoint)) {
        mock_error(engine, frame->channel, KELPIE_E_NOT_FOUND, "no such file in the guest");
        mock_channel_close(channel);
        return;
    }
    klp_tar_end_append(&channel->out);
    channel->ended = channel->is_done = true;
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

void mock_unique(struct mock_engine *engine, const struct klp_guest_frame *frame, int64_t wall_ns)
{
    struct mock_state *state = engine->state;
    uint64_t which = 0, told_ns = 0;
    uint8_t entropy[64];
    struct klp_bytes hostname;
    bool fork_case, keeps_boot;
    if (!klp_field_u64(frame->body, KLP_TAG_CASE, 0, &which, NULL) || which < KLP_UNIQUE_MOVE ||
        which > KLP_UNIQUE_FORK ||
        !klp_field_u64(frame->body, KLP_TAG_WALL_NS, 0, &told_ns, NULL) ||
        !bytes_take(frame->body, KLP_TAG_GENERATION, state->generation, 16) ||
        !bytes_take(frame->body, KLP_TAG_ENTROPY, entropy, sizeof(entropy))) {
        mock_error(engine, frame->channel, KELPIE_E_PROTOCOL, "UNIQUE is not complete");
        return;
    }
    fork_case = which == KLP_UNIQUE_FORK;
    keeps_boot = which == KLP_UNIQUE_MOVE;
    state->has_generation = 1;
    rng_step(state->rng, entropy, sizeof(entropy));
    state->clock_offset_ns = (int64_t)told_ns - wall_ns;
    if (fork_case)
        KLP_IGNORE(bytes_take(frame->body, KLP_TAG_MACHINE_ID, state->machine_id, 16));
    if (!keeps_boot)
        KLP_IGNORE(bytes_take(frame->body, KLP_TAG_BOOT_ID, state->boot_id, 16));
    if (fork_case && klp_field_find(frame->body, KLP_TAG_HOSTNAME, &hostname) &&
        hostname.size < sizeof(state->hostname))
        klp_format(state->hostname, sizeof(state->hostname), "%.*s", (int)hostname.size,
                   (const char *)hostname.data);

    __attribute__((cleanup(klp_auto_buf))) struct klp_buf fields = KLP_BUF_INIT(8 * KLP_KIB);
    int64_t now = wall_ns + state->clock_offset_ns;
    uint8_t clock[8];
    for (unsigned i = 0; i < 8; i++)
        clock[i] = (uint8_t)((uint64_t)now >> (8 * i));
    item(&fields, KLP_ITEM_GENERATION, KLP_UNIQUE_DONE, state->generation, 16);
    item(&fields, KLP_ITEM_KERNEL_RNG, KLP_UNIQUE_DONE, state->rng, sizeof(state->rng));
    item(&fields, KLP_ITEM_HWRNG, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    item(&fields, KLP_ITEM_CLOCK, KLP_UNIQUE_DONE, clock, sizeof(clock));
    item(&fields, KLP_ITEM_MACHINE_ID, fork_case ? KLP_UNIQUE_DONE : KLP_UNIQUE_NOT_APPLICABLE,
         state->machine_id, 16);
    item(&fields, KLP_ITEM_BOOT_ID, keeps_boot ? KLP_UNIQUE_NOT_APPLICABLE : KLP_UNIQUE_DONE,
         state->boot_id, 16);
    item(&fields, KLP_ITEM_HOSTNAME, fork_case ? KLP_UNIQUE_DONE : KLP_UNIQUE_NOT_APPLICABLE,
         state->hostname, strlen(state->hostname));
    item(&fields, KLP_ITEM_SEED_FILES, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    item(&fields, KLP_ITEM_SSH_KEYS, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    item(&fields, KLP_ITEM_HOOKS, KLP_UNIQUE_NOT_APPLICABLE, NULL, 0);
    mock_frame(engine, KLP_GUEST_RECEIPT, 0, frame->channel, &fields);
}
