/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's part of UNIQUE: random state and clock; and the published generation. In a test on
 * its host none of that is ours to change, and the items say so. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/fmt.h"

#define HWRNG_ROUNDS_MAX 64 /* reads of what was fetched before the snapshot */
#define CLOCK_DIFF_MAX_NS 250000000ull
#define SAMPLE_SIZE 32

/* ---- random state */

void guest_unique_init(struct guest *g)
{
    char name[64];
    g->has_hwrng =
        g->options.system &&
        guest_file_read("/sys/class/misc/hw_random/rng_current", name, sizeof(name)) > 0 &&
        strncmp(name, "none", 4) != 0;
}

/* Ends at the first read that would wait for fresh bytes. */
static void hwrng_drain(struct guest *g, struct guest_unique *unique)
{
    uint8_t bytes[64];
    int fd = g->has_hwrng ? open("/dev/hwrng", O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
    if (fd < 0) {
        guest_item_text(unique, KLP_ITEM_HWRNG, KLP_UNIQUE_NOT_APPLICABLE, "");
        return;
    }
    for (int i = 0; i < HWRNG_ROUNDS_MAX && read(fd, bytes, sizeof(bytes)) > 0; i++) {
    }
    close(fd);
    guest_item_text(unique, KLP_ITEM_HWRNG, KLP_UNIQUE_DONE, "");
}

/* Credited, then taken over at once. Writing to /dev/urandom instead would do neither. */
static bool kernel_reseed(const struct guest_unique *unique, const char **why)
{
    /* struct rand_pool_info: bits to credit, bytes, and the bytes themselves */
    struct {
        int credit_bits, size;
        uint8_t bytes[sizeof(unique->entropy)];
    } pool = {.credit_bits = 8 * (int)sizeof(unique->entropy),
              .size = (int)sizeof(unique->entropy)};
    memcpy(pool.bytes, unique->entropy, sizeof(pool.bytes));
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    bool added = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0;
    bool reseeded = added && ioctl(fd, RNDRESEEDCRNG, NULL) == 0;
    *why = !added ? "RNDADDENTROPY was refused" : "RNDRESEEDCRNG was refused";
    guest_close(&fd);
    explicit_bzero(&pool, sizeof(pool));
    return reseeded;
}

void guest_unique_random(struct guest *g, struct guest_unique *unique)
{
    uint8_t sample[SAMPLE_SIZE];
    uint16_t result = KLP_UNIQUE_NOT_APPLICABLE;
    const char *why = "";
    hwrng_drain(g, unique);
    if (g->options.system)
        result = kernel_reseed(unique, &why) ? KLP_UNIQUE_DONE : KLP_UNIQUE_FAILED;
    if (getrandom(sample, sizeof(sample), 0) != (ssize_t)sizeof(sample)) {
        result = KLP_UNIQUE_FAILED;
        why = "getrandom gave no sample";
    }
    if (result == KLP_UNIQUE_FAILED)
        guest_item_text(unique, KLP_ITEM_KERNEL_RNG, result, why);
    else
        guest_item_set(unique, KLP_ITEM_KERNEL_RNG, result, sample, sizeof(sample));
}

/* ---- clock */

static uint64_t wall_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void store_u64(uint8_t out[8], uint64_t value)
{
    for (unsigned i = 0; i < 8; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

void guest_unique_clock(struct guest *g, struct guest_unique *unique)
{
    uint8_t evidence[8];
    uint16_t result = KLP_UNIQUE_NOT_APPLICABLE;
    if (g->options.system) {
        struct timespec wanted = {(time_t)(unique->wall_ns / 1000000000u),
                                  (long)(unique->wall_ns % 1000000000u)};
        bool set = unique->has_wall && clock_settime(CLOCK_REALTIME, &wanted) == 0;
        uint64_t now = wall_now_ns();
        uint64_t diff = now > unique->wall_ns ? now - unique->wall_ns : unique->wall_ns - now;
        result = set && diff <= CLOCK_DIFF_MAX_NS ? KLP_UNIQUE_DONE : KLP_UNIQUE_FAILED;
    }
    store_u64(evidence, wall_now_ns());
    guest_item_set(unique, KLP_ITEM_CLOCK, result, evidence, sizeof(evidence));
}

/* ---- generation */

/* Always the same files, so that a program that mapped the number sees it change. */
static bool generation_write(const struct guest *g)
{
    char path[KLP_PATH_MAX], text[2 * GUEST_GENERATION_SIZE + 2];
    uint8_t counter[8];
    klp_hex_encode(g->generation, sizeof(g->generation), text);
    text[sizeof(text) - 2] = '\n';
    store_u64(counter, g->counter);
    return guest_system_path(g, "/run/kelpie/generation-counter", path) &&
           guest_file_rewrite(path, counter, sizeof(counter), 0644) &&
           guest_system_path(g, "/run/kelpie/generation", path) &&
           guest_file_rewrite(path, text, sizeof(text) - 1, 0644);
}

bool guest_publish_generation(const struct guest *g)
{
    KLP_AUTO(kelpie_error) struct kelpie_error *err = NULL;
    char path[KLP_PATH_MAX];
    if (!guest_system_path(g, "/run/kelpie", path))
        return true; /* no files of ours: the agent itself answers for it */
    return generation_write(g) || (guest_make_folders(path, &err) && generation_write(g));
}
