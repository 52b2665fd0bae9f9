/*
 * Hits: reads that the lane answers itself.
 *
 * A reader (crew.c) has read a request from the kernel. If it is a read whose chunks are all in L1, as the board says, it is
 * answered from the segment files. Everything else goes to lane.c, which passes it on to the daemon.
 *
 *      request -> image (by inode) -> chunks: tag and hint -> slots: same tag? -> read -> slots: still the same? -> reply
 *
 * No lock, no allocation, and one copy by us: from the page cache into the reader's buffer. What each look at the board
 * is good for, and why the order of them matters, says board.h. Any doubt sends the request to the daemon.
 *
 * What is not in the page cache: small reads go past it (disk.c), and the reader reads the next request meanwhile. The others
 * wait for the disk here, while others of the crew take over. Either way the request is kept, like one that is with the
 * daemon: if the disk does not answer in time, the daemon gets it as well (it can fetch the chunk again), and who is first
 * answers.
 */
#include "hits.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

uint64_t precise_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* ---- From a request to places in segment files ---- */

static void add_run(struct hit *hit, int class, off_t position, uint32_t at, uint32_t length) {
    struct run *last = hit->run_count ? &hit->runs[hit->run_count - 1] : NULL;
    if (last && last->class == class && (class == ZEROS || last->position + last->length == position))
        last->length += length;
    else
        hit->runs[hit->run_count++] = (struct run){class, at, length, position};
}

/* Find one chunk, of which `length` bytes from `start` go to `at` of the reply. */
static enum board_counter find_chunk(struct lane *lane, struct hit *hit, struct board_chunk *chunk, uint32_t start,
                                     uint32_t at, uint32_t length) {
    uint32_t hint = atomic_load_explicit(&chunk->hint, memory_order_acquire);
    struct board_tag tag = {{atomic_load_explicit(&chunk->tag[0], memory_order_acquire),
                             atomic_load_explicit(&chunk->tag[1], memory_order_acquire)}};
    if (tag.word[0] == BOARD_ZERO_TAG && tag.word[1] == BOARD_ZERO_TAG) {
        hit->zero_count++;
        add_run(hit, ZEROS, 0, at, length);
        return FOUND;
    }
    if (!hint || (!tag.word[0] && !tag.word[1]))
        return COUNTER_unknown_chunk;
    struct found_chunk *found = &hit->chunks[hit->chunk_count];
    uint32_t class = (hint - 1) >> BOARD_INDEX_BITS, shift = BOARD_SMALLEST_SHIFT + class;
    found->slot = board_slot(lane->board, hint - 1);
    found->tag = tag;
    if (!found->slot || (uint64_t)start + length > 1ULL << shift ||
        !board_look(found->slot, tag, &found->generation) || !atomic_load(&lane->segments[class].is_there))
        return COUNTER_moved;
    off_t position = ((off_t)((hint - 1) & ((1u << BOARD_INDEX_BITS) - 1)) << shift) + start;
    add_run(hit, (int)class, position, at, length);
    hit->chunk_count++;
    return FOUND;
}

/* Find all chunks of a read. FOUND, and the reply's length; or why not. */
static enum board_counter find_chunks(struct lane *lane, struct hit *hit, uint64_t inode,
                                      const struct fuse_read_in *read) {
    struct board_view view;
    if (!board_find_image(lane->board, inode, &view) || !view.table_bytes || view.chunk_shift < BOARD_SMALLEST_SHIFT ||
        view.chunk_shift > 22 || read->size > MAX_READ)
        return COUNTER_unknown_image;
    uint64_t left = read->offset < view.size_bytes ? view.size_bytes - read->offset : 0;
    hit->length = left < read->size ? (uint32_t)left : read->size;
    hit->chunk_count = hit->zero_count = hit->run_count = 0;
    uint32_t chunk_bytes = 1u << view.chunk_shift;
    for (uint32_t at = 0, want; at < hit->length; at += want) {
        uint64_t offset = read->offset + at;
        uint32_t start = (uint32_t)offset & (chunk_bytes - 1);
        want = chunk_bytes - start < hit->length - at ? chunk_bytes - start : hit->length - at;
        struct board_chunk *chunk = board_chunk(lane->board, &view, offset >> view.chunk_shift);
        enum board_counter found = chunk ? find_chunk(lane, hit, chunk, start, at, want) : COUNTER_unknown_chunk;
        if (found != FOUND)
            return found;
    }
    return board_is_same(&view) ? FOUND : COUNTER_unknown_image;
}

bool hit_is_unchanged(const struct hit *hit) {
    for (uint32_t i = 0; i < hit->chunk_count; i++)
        if (!board_is_unchanged(hit->chunks[i].slot, hit->chunks[i].tag, hit->chunks[i].generation))
            return false;
    return true;
}

/* ---- The bytes ---- */

enum filled { FILLED, NOT_IN_MEMORY, UNREADABLE };

/* Where bytes are read from: only from memory; from the page cache, or through it; past it, which disk.c allows. */
enum source { MEMORY, PAGE_CACHE, DISK };

/* Fill the reply from the runs. */
static enum filled fill_reply(struct lane *lane, const struct hit *hit, enum source source) {
    for (uint32_t i = 0; i < hit->run_count; i++) {
        const struct run *run = &hit->runs[i];
        unsigned char *to = hit->reply + run->at;
        if (run->class == ZEROS) {
            memset(to, 0, run->length);
            continue;
        }
        const struct segment *segment = &lane->segments[run->class];
        int fd = source == DISK ? segment->direct_fd : segment->fd;
        uint32_t length = source == DISK ? disk_length(run->length) : run->length;
        for (uint32_t done = 0; done < length;) {
            struct iovec part = {to + done, length - done};
            ssize_t count = preadv2(fd, &part, 1, run->position + done, source == MEMORY ? RWF_NOWAIT : 0);
            if (source == MEMORY && count != (ssize_t)part.iov_len)
                return NOT_IN_MEMORY; /* or a file system that cannot tell */
            if (count <= 0 && !(count < 0 && errno == EINTR))
                return UNREADABLE;
            done += count > 0 ? (uint32_t)count : 0;
        }
    }
    return FILLED;
}

/* ---- Answers ---- */

void hit_send(struct lane *lane, struct board_counters *counters, const struct hit *hit) {
    struct fuse_out_header *header = (void *)(hit->reply - sizeof *header);
    *header = (struct fuse_out_header){.len = (uint32_t)sizeof *header + hit->length, .unique = hit->unique};
    answer(lane, hit->device, header, hit->reply);
    board_count(counters, COUNTER_hits, 1);
    board_count(counters, COUNTER_hit_bytes, hit->length);
    board_count(counters, COUNTER_hit_chunks, hit->chunk_count);
    board_count(counters, COUNTER_zero_chunks, hit->zero_count);
    uint64_t took_ns = precise_ns() - hit->came_ns;
    int bucket = took_ns ? 63 - __builtin_clzll(took_ns) : 0;
    bucket = bucket < BOARD_LATENCIES ? bucket : BOARD_LATENCIES - 1;
    uint64_t before = atomic_load_explicit(&counters->latency[bucket], memory_order_relaxed);
    atomic_store_explicit(&counters->latency[bucket], before + 1, memory_order_relaxed);
}

static void count_passed(struct board_counters *counters, enum board_counter reason) {
    board_count(counters, COUNTER_passed_reads, 1);
    board_count(counters, reason, 1);
}

/* A hit that was kept on disk and is none after all: the daemon gets it, if it has not got it already. */
void hit_pass_on(struct lane *lane, struct board_counters *counters, const struct hit *hit, enum board_counter reason) {
    if (pass_from_disk(lane, hit->unique))
        count_passed(counters, reason);
}

/* Wait for the disk here. FOUND: it is dealt with; or why the daemon has to. */
static enum board_counter answer_from_disk(struct reader *self, const struct fuse_in_header *request,
                                           enum source source) {
    struct lane *lane = self->lane;
    const struct hit *hit = &self->hit;
    if (!leave_place(lane))
        return COUNTER_disk_busy;
    if (!keep_on_disk(lane, request, hit->device)) {
        answer_error(lane, hit->device, hit->unique, ENOMEM);
    } else if (fill_reply(lane, hit, source) != FILLED) {
        hit_pass_on(lane, self->counters, hit, COUNTER_unreadable);
    } else if (!hit_is_unchanged(hit)) {
        hit_pass_on(lane, self->counters, hit, COUNTER_changed);
    } else if (take_from_disk(lane, hit->unique)) {
        board_count(self->counters, COUNTER_disk_reads, 1);
        if (source == DISK)
            COUNT(lane, disk_direct);
        hit_send(lane, self->counters, hit);
    }
    take_place(lane);
    return FOUND;
}

/* Answer a read if it is a hit. */
static enum board_counter answer_read(struct reader *self, const struct fuse_in_header *request,
                                      const struct fuse_read_in *read) {
    struct lane *lane = self->lane;
    struct hit *hit = &self->hit;
    enum board_counter reason = find_chunks(lane, hit, request->nodeid, read);
    if (reason != FOUND)
        return reason;
    hit->unique = request->unique;
    bool is_on_disk = self->calm < CALM_REQUESTS && disk_is_better(lane, hit);
    if (is_on_disk || fill_reply(lane, hit, MEMORY) == NOT_IN_MEMORY) {
        self->calm = 0;
        if (disk_takes(self, request))
            return FOUND;
        return answer_from_disk(self, request, is_on_disk ? DISK : PAGE_CACHE);
    }
    if (!hit_is_unchanged(hit))
        return COUNTER_changed;
    hit_send(lane, self->counters, hit);
    return FOUND;
}

/* Answer a read here, or say that it has to be passed on; and note it for the policy. */
bool serve_read(struct reader *self, const struct fuse_in_header *request) {
    const struct fuse_read_in *read = (const void *)(request + 1);
    struct board_access access = {.at_ns = self->hit.came_ns,
                                  .inode = request->nodeid,
                                  .offset = read->offset,
                                  .length = read->size,
                                  .pid = request->pid};
    enum board_counter reason = answer_read(self, request, read);
    access.by_lane = reason == FOUND;
    board_note(&self->lane->board->ring, self->counters, &access);
    if (reason == FOUND)
        return true;
    count_passed(self->counters, reason);
    return false;
}

/* ---- Segments ---- */

/* Give `fd` the number that *own has for good; a new one if it has none. */
static bool adopt(int fd, int *own, bool has_number) {
    if (has_number)
        return dup3(fd, *own, O_CLOEXEC) >= 0;
    *own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return *own >= 0;
}

/* Open the same file past the page cache, where its file system can do that. */
static void adopt_direct(struct segment *segment, int fd) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    bool is_direct = direct >= 0 && adopt(direct, &segment->direct_fd, segment->has_direct_fd);
    segment->has_direct_fd |= is_direct;
    atomic_store_explicit(&segment->is_direct, is_direct, memory_order_release);
    if (direct >= 0)
        close(direct);
}

/*
 * Read the slots of a class from this file from now on. The daemon fills no slot of the class on the board before it has
 * seen here that the file is its own, and has emptied them all before it made another file.
 */
int lane_set_segment(struct lane *lane, uint32_t number, int fd) {
    struct stat status;
    if (number >= BOARD_CLASSES)
        return EINVAL;
    struct board_segment *told = &lane->board->segments[number];
    struct segment *segment = &lane->segments[number];
    if (fstat(fd, &status) < 0)
        return errno;
    atomic_store_explicit(&told->inode, 0, memory_order_release);
    atomic_store_explicit(&segment->is_direct, false, memory_order_release);
    if (!adopt(fd, &segment->fd, atomic_load(&segment->is_there)))
        return errno;
    adopt_direct(segment, fd);
    atomic_store_explicit(&segment->is_there, true, memory_order_release);
    atomic_store_explicit(&told->device, status.st_dev, memory_order_release);
    atomic_store_explicit(&told->inode, status.st_ino, memory_order_release);
    return 0;
}
