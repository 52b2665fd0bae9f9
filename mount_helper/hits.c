/*
 * Hits: reads that the lane answers itself, and the threads that do it.
 *
 * A reader reads a request from the kernel, and if it is a read whose chunks are all in L1, as the board says, answers it
 * from the segment files. Everything else it gives to lane.c, which passes it on to the daemon.
 *
 *      request -> image (by inode) -> chunks: tag and hint -> slots: same tag? -> preadv -> slots: still the same? -> reply
 *
 * No lock, no allocation, and one copy by us: from the page cache into the reader's buffer. What each look at the board
 * is good for, and why the order of them matters, says board.h. Any doubt sends the request to the daemon.
 *
 * The crew. As long as hits come from memory, `wanted` readers are best: more would only get into each other's way. But a
 * reader that waits for the disk answers nobody. So before it does, it sees to it that `wanted` others read requests: it
 * calls those that are parked, or starts new ones, up to `most`. When it is back it reads on; there may be more than
 * wanted then, and while reads go to the disk that is right: they need no calling. A reader that has met no disk for a
 * while, when there are more than wanted, parks. When all of the crew wait for the disk, the daemon gets the rest.
 *
 * A request whose reader waits for the disk is kept, like one that is with the daemon: if the disk does not answer in
 * time, the daemon gets the request as well (it can fetch the chunk again), and who is first answers.
 */
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define READER_NICE -15
#define MAX_CHUNKS (MAX_READ / 4096 + 1) /* that one read can touch */
#define DISK_READERS 32 /* waits for the disk at once: the queue depth that a fast SSD wants */
#define CALM_REQUESTS 256
#define STOP_TRIES 100
#define STOP_TRY_NS 20000000

/* A chunk that a read needs, as it was found; looked at again after it has been read. */
struct found_chunk {
    struct board_slot *slot;
    struct board_tag tag;
    uint64_t generation;
};

/* Bytes that lie side by side in a segment file (or are zeros: fd -1), and where in the reply they go. */
struct run {
    int fd;
    off_t position;
    uint32_t at, length;
};

struct reader {
    struct lane *lane;
    pthread_t thread;
    uint32_t index, device;
    struct board_counters *counters;
    unsigned char *request;        /* REQUEST_SIZE */
    unsigned char *pages, *reply;  /* the reply's data begin a page */
    uint64_t came_ns;
    uint32_t calm; /* requests since it last waited for the disk */
    uint32_t chunk_count, zero_count, run_count;
    struct found_chunk chunks[MAX_CHUNKS];
    struct run runs[MAX_CHUNKS];
};

static uint64_t precise_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* ---- From a request to places in segment files ---- */

#define FOUND COUNTERS /* no reason to pass a read on */

static void add_run(struct reader *self, int fd, off_t position, uint32_t at, uint32_t length) {
    struct run *last = self->run_count ? &self->runs[self->run_count - 1] : NULL;
    if (last && last->fd == fd && (fd < 0 || last->position + last->length == position))
        last->length += length;
    else
        self->runs[self->run_count++] = (struct run){fd, position, at, length};
}

/* Find one chunk, of which `length` bytes from `start` go to `at` of the reply. */
static enum board_counter find_chunk(struct reader *self, struct board_chunk *chunk, uint32_t start, uint32_t at,
                                     uint32_t length) {
    struct lane *lane = self->lane;
    uint32_t hint = atomic_load_explicit(&chunk->hint, memory_order_acquire);
    struct board_tag tag = {{atomic_load_explicit(&chunk->tag[0], memory_order_acquire),
                             atomic_load_explicit(&chunk->tag[1], memory_order_acquire)}};
    if (tag.word[0] == BOARD_ZERO_TAG && tag.word[1] == BOARD_ZERO_TAG) {
        self->zero_count++;
        add_run(self, -1, 0, at, length);
        return FOUND;
    }
    if (!hint || (!tag.word[0] && !tag.word[1]))
        return COUNTER_unknown_chunk;
    struct found_chunk *found = &self->chunks[self->chunk_count];
    uint32_t class = (hint - 1) >> BOARD_INDEX_BITS, shift = BOARD_SMALLEST_SHIFT + class;
    found->slot = board_slot(lane->board, hint - 1);
    found->tag = tag;
    if (!found->slot || (uint64_t)start + length > 1ULL << shift ||
        !board_look(found->slot, tag, &found->generation) || !atomic_load(&lane->has_segment[class]))
        return COUNTER_moved;
    off_t position = ((off_t)((hint - 1) & ((1u << BOARD_INDEX_BITS) - 1)) << shift) + start;
    add_run(self, lane->segment_fds[class], position, at, length);
    self->chunk_count++;
    return FOUND;
}

/* Find all chunks of a read. FOUND, and the reply's length; or why not. */
static enum board_counter find_chunks(struct reader *self, uint64_t inode, const struct fuse_read_in *read,
                                      uint32_t *length) {
    struct board *board = self->lane->board;
    struct board_view view;
    if (!board_find_image(board, inode, &view) || !view.table_bytes || view.chunk_shift < BOARD_SMALLEST_SHIFT ||
        view.chunk_shift > 22 || read->size > MAX_READ)
        return COUNTER_unknown_image;
    uint64_t left = read->offset < view.size_bytes ? view.size_bytes - read->offset : 0;
    *length = left < read->size ? (uint32_t)left : read->size;
    self->chunk_count = self->zero_count = self->run_count = 0;
    uint32_t chunk_bytes = 1u << view.chunk_shift;
    for (uint32_t at = 0, want; at < *length; at += want) {
        uint64_t offset = read->offset + at;
        uint32_t start = (uint32_t)offset & (chunk_bytes - 1);
        want = chunk_bytes - start < *length - at ? chunk_bytes - start : *length - at;
        struct board_chunk *chunk = board_chunk(board, &view, offset >> view.chunk_shift);
        enum board_counter found = chunk ? find_chunk(self, chunk, start, at, want) : COUNTER_unknown_chunk;
        if (found != FOUND)
            return found;
    }
    return board_is_same(&view) ? FOUND : COUNTER_unknown_image;
}

static bool are_unchanged(const struct reader *self) {
    for (uint32_t i = 0; i < self->chunk_count; i++)
        if (!board_is_unchanged(self->chunks[i].slot, self->chunks[i].tag, self->chunks[i].generation))
            return false;
    return true;
}

/* ---- The bytes ---- */

enum filled { FILLED, NOT_IN_MEMORY, UNREADABLE };

/* Fill the reply from the runs; without `may_wait` only with what is in the page cache. */
static enum filled fill_reply(struct reader *self, bool may_wait) {
    for (uint32_t i = 0; i < self->run_count; i++) {
        const struct run *run = &self->runs[i];
        unsigned char *to = self->reply + run->at;
        if (run->fd < 0) {
            memset(to, 0, run->length);
            continue;
        }
        for (uint32_t done = 0; done < run->length;) {
            struct iovec part = {to + done, run->length - done};
            ssize_t count = preadv2(run->fd, &part, 1, run->position + done, may_wait ? 0 : RWF_NOWAIT);
            if (count <= 0 && may_wait && !(count < 0 && errno == EINTR))
                return UNREADABLE;
            if (!may_wait && count != (ssize_t)part.iov_len)
                return NOT_IN_MEMORY; /* or a file system that cannot tell */
            done += count > 0 ? (uint32_t)count : 0;
        }
    }
    return FILLED;
}

static void send_hit(struct reader *self, uint64_t unique, uint32_t length) {
    struct fuse_out_header *header = (void *)(self->reply - sizeof *header);
    *header = (struct fuse_out_header){.len = (uint32_t)sizeof *header + length, .unique = unique};
    answer(self->lane, self->device, header, self->reply);
    board_count(self->counters, COUNTER_hits, 1);
    board_count(self->counters, COUNTER_hit_bytes, length);
    board_count(self->counters, COUNTER_hit_chunks, self->chunk_count);
    board_count(self->counters, COUNTER_zero_chunks, self->zero_count);
    uint64_t took_ns = precise_ns() - self->came_ns;
    int bucket = took_ns ? 63 - __builtin_clzll(took_ns) : 0;
    bucket = bucket < BOARD_LATENCIES ? bucket : BOARD_LATENCIES - 1;
    uint64_t before = atomic_load_explicit(&self->counters->latency[bucket], memory_order_relaxed);
    atomic_store_explicit(&self->counters->latency[bucket], before + 1, memory_order_relaxed);
}

/* ---- The crew ---- */

static void *reader_loop(void *argument);

/* Under crew.mutex. */
static bool start_reader(struct lane *lane) {
    struct crew *crew = &lane->crew;
    uint32_t index = crew->started;
    struct reader *self = index < crew->most ? calloc(1, sizeof *self) : NULL;
    if (!self)
        return false;
    self->lane = lane;
    self->index = index;
    self->device = index % lane->device_count;
    self->counters = &lane->board->counters[index];
    self->request = malloc(REQUEST_SIZE);
    self->pages = aligned_alloc(PAGE_SIZE, PAGE_SIZE + MAX_READ);
    self->reply = self->pages + PAGE_SIZE;
    if (!self->request || !self->pages || start_thread(&self->thread, reader_loop, self)) {
        free(self->request);
        free(self->pages);
        free(self);
        return false;
    }
    crew->readers[crew->started++] = self;
    return true;
}

/* Call or start somebody to read requests. False: there is nobody. */
static bool call_reader(struct lane *lane) {
    struct crew *crew = &lane->crew;
    pthread_mutex_lock(&crew->mutex);
    bool is_there = crew->parked > crew->called || start_reader(lane);
    if (is_there) {
        crew->called++;
        atomic_fetch_add(&crew->reading, 1);
        pthread_cond_signal(&crew->turn);
    }
    pthread_mutex_unlock(&crew->mutex);
    return is_there;
}

/* Leave the reading of requests to others. False: nobody would be left to do it, stay. */
static bool leave_place(struct lane *lane) {
    struct crew *crew = &lane->crew;
    uint32_t others = atomic_fetch_sub(&crew->reading, 1) - 1;
    if (others >= crew->wanted || call_reader(lane) || others > 0)
        return true;
    atomic_fetch_add(&crew->reading, 1);
    return false;
}

static void take_place(struct lane *lane) {
    atomic_fetch_add(&lane->crew.reading, 1);
}

/* Wait to be called. Who calls has counted us among those who read. Under crew.mutex. */
static void wait_for_call(struct lane *lane) {
    struct crew *crew = &lane->crew;
    crew->parked++;
    while (!crew->called && !atomic_load(&lane->stop))
        pthread_cond_wait(&crew->turn, &crew->mutex);
    crew->parked--;
    crew->called -= crew->called > 0;
}

/* Park, if more read requests than are wanted. */
static void park(struct lane *lane) {
    struct crew *crew = &lane->crew;
    pthread_mutex_lock(&crew->mutex);
    if (atomic_load(&crew->reading) > crew->wanted) {
        atomic_fetch_sub(&crew->reading, 1);
        wait_for_call(lane);
    }
    pthread_mutex_unlock(&crew->mutex);
}

/* A hit whose bytes are on the disk. FOUND: it is dealt with; or why the daemon has to. */
static enum board_counter answer_from_disk(struct reader *self, const struct fuse_in_header *request, uint32_t length) {
    struct lane *lane = self->lane;
    if (!leave_place(lane))
        return COUNTER_disk_busy;
    self->calm = 0;
    uint64_t unique = request->unique;
    bool is_kept = keep_on_disk(lane, request, self->device);
    bool is_right = is_kept && fill_reply(self, true) == FILLED && are_unchanged(self);
    if (is_right && take_from_disk(lane, unique)) {
        board_count(self->counters, COUNTER_disk_reads, 1);
        send_hit(self, unique, length);
    } else if (is_kept && !is_right) {
        board_count(self->counters, COUNTER_unreadable, 1);
        pass_from_disk(lane, unique);
    } else if (!is_kept) {
        answer_error(lane, self->device, unique, ENOMEM);
    }
    take_place(lane);
    return FOUND;
}

/* Answer a read if it is a hit. */
static enum board_counter answer_read(struct reader *self, const struct fuse_in_header *request,
                                      const struct fuse_read_in *read) {
    uint32_t length;
    enum board_counter reason = find_chunks(self, request->nodeid, read, &length);
    if (reason != FOUND)
        return reason;
    enum filled filled = fill_reply(self, false);
    if (filled == NOT_IN_MEMORY)
        return answer_from_disk(self, request, length);
    if (!are_unchanged(self))
        return COUNTER_changed;
    send_hit(self, request->unique, length);
    return FOUND;
}

/* Answer a read here, or say that it has to be passed on; and note it for the policy. */
static bool serve_read(struct reader *self, const struct fuse_in_header *request) {
    const struct fuse_read_in *read = (const void *)(request + 1);
    struct lane *lane = self->lane;
    struct board_access access = {.at_ns = self->came_ns,
                                  .inode = request->nodeid,
                                  .offset = read->offset,
                                  .length = read->size,
                                  .pid = request->pid};
    enum board_counter reason = answer_read(self, request, read);
    access.by_lane = reason == FOUND;
    board_note(&lane->board->ring, self->counters, &access);
    if (reason == FOUND)
        return true;
    board_count(self->counters, COUNTER_passed_reads, 1);
    board_count(self->counters, reason, 1);
    return false;
}

/* One request; false at the end of the mount. */
static bool serve(struct reader *self) {
    struct lane *lane = self->lane;
    const struct fuse_in_header *request = (const void *)self->request;
    ssize_t length = read(lane->devices[self->device], self->request, REQUEST_SIZE);
    if (length < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
        return true; /* ENOENT: the request was taken back while it was read */
    if (length <= 0) { /* ENODEV: unmounted; ECONNABORTED: through /sys/fs/fuse/connections */
        kernel_unmounted(lane);
        return false;
    }
    self->came_ns = precise_ns();
    bool is_read = (size_t)length >= sizeof *request + sizeof(struct fuse_read_in) && request->opcode == FUSE_READ &&
                   request->len == (size_t)length;
    if (!is_read || !serve_read(self, request))
        carry_request(lane, request, (size_t)length, self->device);
    else
        COUNT(lane, requests);
    return true;
}

/* A full table leaves requests in the kernel. */
static void wait_for_room(struct lane *lane) {
    while (atomic_load_explicit(&lane->is_full, memory_order_relaxed) && !atomic_load(&lane->stop))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

static void *reader_loop(void *argument) {
    struct reader *self = argument;
    struct lane *lane = self->lane;
    /*
     * It works for microseconds, and others wait for it: so it goes before them (as root; else this fails, and it is only
     * slower).
     */
    setpriority(PRIO_PROCESS, (id_t)gettid(), READER_NICE);
    pthread_mutex_lock(&lane->crew.mutex);
    wait_for_call(lane);
    pthread_mutex_unlock(&lane->crew.mutex);
    while (!atomic_load(&lane->stop) && serve(self)) {
        wait_for_room(lane);
        if (++self->calm > CALM_REQUESTS && atomic_load_explicit(&lane->crew.reading, memory_order_relaxed) >
                                                lane->crew.wanted)
            park(lane);
    }
    call_reader(lane); /* the next one finds the same end */
    return NULL;
}

static void wake_up(int number) {
    (void)number; /* a read of /dev/fuse ends with EINTR */
}

int crew_start(struct lane *lane) {
    struct crew *crew = &lane->crew;
    struct sigaction action = {.sa_handler = wake_up};
    sigaction(SIGRTMIN, &action, NULL);
    crew->most = crew->wanted + DISK_READERS;
    pthread_mutex_lock(&crew->mutex);
    pthread_mutex_unlock(&crew->mutex);
    bool is_started = true;
    for (uint32_t i = 0; is_started && i < crew->wanted; i++)
        is_started = call_reader(lane);
    return is_started ? 0 : EAGAIN;
}

/*
 * lane.stop is set. A signal can come just before a read begins, so it is sent until the thread has ended. False: one
 * waits for a disk that does not answer; it needs what it uses for ever.
 */
bool crew_stop(struct lane *lane) {
    struct crew *crew = &lane->crew;
    pthread_mutex_lock(&crew->mutex);
    pthread_cond_broadcast(&crew->turn);
    crew->most = 0; /* no more of them */
    uint32_t left = crew->started;
    pthread_mutex_unlock(&crew->mutex);
    for (int tries = 0; left && tries < STOP_TRIES;) {
        struct reader *reader = crew->readers[left - 1];
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += STOP_TRY_NS;
        until.tv_sec += until.tv_nsec / (long)SECOND_NS;
        until.tv_nsec %= (long)SECOND_NS;
        pthread_kill(reader->thread, SIGRTMIN);
        if (pthread_timedjoin_np(reader->thread, NULL, &until)) {
            tries++;
            continue;
        }
        left--;
        free(reader->request);
        free(reader->pages);
        free(reader);
    }
    return !left;
}

/* ---- Segments ---- */

/*
 * Read the slots of a class from this file from now on. The daemon fills no slot of the class on the board before it has
 * seen here that the file is its own, and has emptied them all before it made another file.
 */
int lane_set_segment(struct lane *lane, uint32_t number, int fd) {
    struct stat status;
    if (number >= BOARD_CLASSES)
        return EINVAL;
    struct board_segment *segment = &lane->board->segments[number];
    if (fstat(fd, &status) < 0)
        return errno;
    atomic_store_explicit(&segment->inode, 0, memory_order_release);
    int own = atomic_load(&lane->has_segment[number]) ? dup3(fd, lane->segment_fds[number], O_CLOEXEC)
                                                      : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (own < 0)
        return errno;
    if (!atomic_load(&lane->has_segment[number])) { /* else it is the same number, and readers read it */
        lane->segment_fds[number] = own;
        atomic_store_explicit(&lane->has_segment[number], true, memory_order_release);
    }
    atomic_store_explicit(&segment->device, status.st_dev, memory_order_release);
    atomic_store_explicit(&segment->inode, status.st_ino, memory_order_release);
    return 0;
}
