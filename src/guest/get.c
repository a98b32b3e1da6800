/* SPDX-License-Identifier: Apache-2.0 */
/* GET: a tar stream of a file or folder, as fast as the host grants credit. The name in the archive
 * is the last part of the path, so that unpacking it anywhere gives a thing of that name. */
#include "guest/guest.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define STREAM_SLACK (16 * KLP_KIB) /* a step may add a pax header beyond what was wanted */

struct stream {
    struct guest_walk *walk; /* NULL: its hooks still run */
    struct klp_buf ready;
    bool ended;
};

static void stream_finish(struct guest *g, struct guest_channel *channel)
{
    struct stream *stream = channel->state;
    if (g->job_channel == channel) {
        guest_runner_cancel(g);
        guest_job_end(g);
    }
    g->file_channels--;
    if (stream->walk != NULL)
        guest_walk_destroy(stream->walk);
    klp_buf_finish(&stream->ready);
    klp_mem_free(stream);
}

static bool stream_pump(struct guest *g, struct guest_channel *channel)
{
    struct stream *stream = channel->state;
    struct kelpie_error *err = NULL;
    size_t room = guest_channel_room(g, channel);
    if (stream->walk == NULL || room == 0)
        return false;
    if (!stream->ended && stream->ready.size < room) {
        int got = guest_walk_fill(stream->walk, &stream->ready, room - stream->ready.size, &err);
        if (got < 0) {
            guest_channel_fail(g, channel, err);
            return false;
        }
        stream->ended = got == 0;
    }
    size_t size = stream->ready.size < room ? stream->ready.size : room;
    if (size > 0) {
        guest_channel_send(g, channel, 0, (struct klp_bytes){stream->ready.data, size});
        klp_buf_drop_front(&stream->ready, size);
    }
    if (!stream->ended || stream->ready.size > 0)
        return true;
    uint32_t id = channel->id;
    guest_channel_send(g, channel, KLP_GUEST_FLAG_END, (struct klp_bytes){0});
    guest_channel_end(g, channel);
    guest_send_done(g, id, NULL);
    return false;
}

static const struct guest_channel_ops stream_ops = {.pump = stream_pump, .finish = stream_finish};

void guest_stream_attach(struct guest_channel *channel, struct guest_walk *walk)
{
    struct stream *stream = channel->state;
    stream->walk = walk;
}

struct guest_channel *guest_stream_open(struct guest *g, uint32_t id, struct guest_walk *walk,
                                        bool control)
{
    if (g->file_channels >= GUEST_FILE_CHANNELS_MAX) {
        guest_send_refusal(g, id, KELPIE_E_BUSY, "cannot read files: %u transfers are under way",
                           GUEST_FILE_CHANNELS_MAX);
        return NULL;
    }
    struct stream *stream = KLP_NEW(struct stream);
    stream->ready = KLP_BUF_INIT(GUEST_DATA_MAX + STREAM_SLACK);
    struct guest_channel *channel = guest_channel_open(g, id, &stream_ops, stream, control);
    if (channel == NULL) {
        klp_mem_free(stream);
        return NULL;
    }
    g->file_channels++;
    stream->walk = walk;
    return channel;
}

/* "/a/b/" -> "b"; "/" -> "". */
static void last_part(char *path, const char **name)
{
    size_t size = strlen(path);
    while (size > 1 && (path[size - 1] == '/' || (path[size - 1] == '.' && path[size - 2] == '/')))
        path[--size] = '\0';
    const char *slash = strrchr(path, '/');
    *name = slash != NULL ? slash + 1 : path;
    if (strcmp(*name, "..") == 0)
        *name = "";
}

void guest_get_open(struct guest *g, uint32_t id, struct klp_bytes body)
{
    struct kelpie_error *err = NULL;
    char path[KLP_PATH_MAX];
    const char *name;
    struct stat info;
    bool fine = guest_path_field(g, body, path, &err);
    if (fine && stat(path, &info) < 0)
        fine = klp_refuse(&err, guest_errno_code(errno), "cannot read '%s': %s", path,
                          strerror(errno));
    if (fine && !S_ISDIR(info.st_mode) && !S_ISREG(info.st_mode))
        fine =
            klp_refuse(&err, KELPIE_E_INVALID, "cannot read '%s': it is no file or folder", path);
    if (!fine) {
        guest_send_error(g, id, err);
        return;
    }
    last_part(path, &name);
    struct guest_walk *walk = guest_walk_create();
    guest_walk_add(walk, path, name, false);
    if (guest_stream_open(g, id, walk, false) == NULL)
        guest_walk_destroy(walk);
}
