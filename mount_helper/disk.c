/*
 * Reads past the page cache: small hits whose bytes are on the disk, without a thread that waits for each.
 *
 *      reader     submits (O_DIRECT, into a buffer of the disk's), reads the next request
 *      finishers  wait for whichever is done first; slots: still the same? -> reply
 *
 * What the protocol of slots asks for (board.h) does not change: the reader has looked before, the finisher looks again
 * after the bytes have come, and what is in doubt goes to the daemon.
 *
 * Linux AIO (io_submit) and not io_uring: a ring posts what is done in the thread that submitted it, and would wake a
 * reader that waits for requests; and containers forbid it more often. Where AIO is forbidden too, or cachestat is not
 * there to tell what is in memory (before Linux 6.5), the crew waits for the disk as it does for large reads
 * (docs/decisions/0011).
 *
 * The page cache is still of use: guests that boot from one image read the same chunks one after another, and a sequential
 * reader wants its readahead. So when a place was read lately, or follows one that was, the reader tries the page cache
 * first, which makes the kernel read it, and what follows it, into memory.
 *
 * The kernel writes into a buffer at any time until a read is done. So no buffer is used again, or freed, before that,
 * whoever has answered meanwhile; and a fork must not make it the child's (MADV_DONTFORK).
 */
#include "hits.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DISK_READS 128           /* under way at once */
#define MOST_BYTES (32 * 1024)   /* of one; larger ones are faster through the page cache, by several threads */
#define MOST_RUNS 4
#define MOST_CHUNKS (MOST_BYTES / 4096)
#define BUFFER_BYTES (PAGE_SIZE + MOST_BYTES)
#define WAITING_ALONE 1          /* readers that wait themselves while nothing is under way: that is quicker then */
#define EVENTS 32                /* taken at a time */
#define PLACES_READ_BITS 16      /* of the number of places that are remembered because they were read, */
#define PLACES_NEXT_BITS 8       /* and because they come after one that was */
#define FINISHERS 2
#define FINISHER_NICE -15
#define CACHESTAT 451            /* the same number everywhere; younger than some systems' headers */

struct disk_read {
    struct disk_read *next_free;
    atomic_uint runs_left;
    atomic_int error; /* the last one of its runs; 0: none */
    struct hit hit;
    struct found_chunk chunks[MOST_CHUNKS];
    struct run runs[MOST_RUNS];
    struct iocb blocks[MOST_RUNS];
};

struct finisher {
    struct lane *lane;
    pthread_t thread;
    struct board_counters *counters;
};

struct disk {
    aio_context_t context;
    uint32_t finisher_count;
    struct finisher finishers[FINISHERS];
    pthread_mutex_t mutex;           /* of the free ones */
    struct disk_read *free;
    atomic_uint under_way;
    unsigned char *buffers;
    atomic_uint places_read[1 << PLACES_READ_BITS], places_next[1 << PLACES_NEXT_BITS];
    struct disk_read reads[DISK_READS];
};

/* ---- What is in memory, and what should be ---- */

/* Is some of these bytes not in the page cache? False also if the kernel does not tell. */
static bool is_missing(int fd, off_t position, uint32_t length) {
    struct {
        uint64_t position, length;
    } range = {(uint64_t)position, length};
    struct {
        uint64_t cached, others[4];
    } pages;
    return syscall(CACHESTAT, fd, &range, &pages, 0) == 0 && pages.cached < (length + PAGE_SIZE - 1) / PAGE_SIZE;
}

static bool kernel_tells_what_is_in_memory(void) {
    return syscall(CACHESTAT, -1, NULL, NULL, 0) < 0 && errno == EBADF;
}

/* Is the place remembered here? It is, from now on, if it is to be. */
static bool is_remembered(atomic_uint *places, int bits, const struct run *run, uint64_t block, bool remember) {
    uint64_t hash = (block | (uint64_t)(uint32_t)run->class << 56) * 0x9E3779B97F4A7C15ULL; /* Fibonacci hashing */
    atomic_uint *place = &places[hash >> (64 - bits)];
    bool is_known = atomic_load_explicit(place, memory_order_relaxed) == (uint32_t)hash;
    if (remember && !is_known)
        atomic_store_explicit(place, (uint32_t)hash, memory_order_relaxed);
    return is_known;
}

/* Was this place read lately, or the one before it? A wrong answer costs only time. */
static bool was_read_lately(struct disk *disk, const struct run *first, const struct run *last) {
    uint64_t block = (uint64_t)first->position / DISK_BLOCK, next = (uint64_t)(last->position + last->length) / DISK_BLOCK;
    bool follows = is_remembered(disk->places_next, PLACES_NEXT_BITS, first, block, false);
    is_remembered(disk->places_next, PLACES_NEXT_BITS, last, next, true);
    return is_remembered(disk->places_read, PLACES_READ_BITS, first, block, true) || follows;
}

/* Can a hit be read past the page cache? */
static bool is_fit(struct lane *lane, const struct hit *hit) {
    if (!lane->disk || hit->length > MOST_BYTES || hit->chunk_count > MOST_CHUNKS || !hit->chunk_count ||
        hit->run_count > MOST_RUNS)
        return false;
    for (uint32_t i = 0; i < hit->run_count; i++) {
        const struct run *run = &hit->runs[i];
        if (run->class != ZEROS &&
            (run->position % DISK_BLOCK || run->at % DISK_BLOCK ||
             !atomic_load_explicit(&lane->segments[run->class].is_direct, memory_order_acquire)))
            return false;
    }
    return true;
}

static bool is_any_missing(struct lane *lane, const struct hit *hit) {
    for (uint32_t i = 0; i < hit->run_count; i++) {
        const struct run *run = &hit->runs[i];
        if (run->class != ZEROS && is_missing(lane->segments[run->class].fd, run->position, run->length))
            return true;
    }
    return false;
}

/*
 * Should a hit go to the disk without a try to read it from the page cache? The try itself would make the kernel read it
 * into the page cache, which is a waste if nobody reads it again.
 */
bool disk_is_better(struct lane *lane, const struct hit *hit) {
    return is_fit(lane, hit) && is_any_missing(lane, hit) &&
           !was_read_lately(lane->disk, &hit->runs[0], &hit->runs[hit->run_count - 1]);
}

/* ---- Reads ---- */

static struct disk_read *take_free(struct disk *disk) {
    pthread_mutex_lock(&disk->mutex);
    struct disk_read *read = disk->free;
    if (read)
        disk->free = read->next_free;
    pthread_mutex_unlock(&disk->mutex);
    if (read)
        atomic_fetch_add(&disk->under_way, 1);
    return read;
}

static void give_back(struct disk *disk, struct disk_read *read) {
    pthread_mutex_lock(&disk->mutex);
    read->next_free = disk->free;
    disk->free = read;
    pthread_mutex_unlock(&disk->mutex);
    atomic_fetch_sub(&disk->under_way, 1);
}

static void copy_hit(struct disk_read *read, const struct hit *hit) {
    unsigned char *reply = read->hit.reply;
    read->hit = *hit;
    read->hit.reply = reply;
    read->hit.chunks = memcpy(read->chunks, hit->chunks, hit->chunk_count * sizeof *hit->chunks);
    read->hit.runs = memcpy(read->runs, hit->runs, hit->run_count * sizeof *hit->runs);
}

/* What is asked of the kernel: one block of memory a run. Lengths are rounded up: slots are multiples of DISK_BLOCK. */
static uint32_t prepare(struct lane *lane, struct disk_read *read, struct iocb *blocks[MOST_RUNS]) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < read->hit.run_count; i++) {
        const struct run *run = &read->runs[i];
        unsigned char *to = read->hit.reply + run->at;
        if (run->class == ZEROS) {
            memset(to, 0, run->length);
            continue;
        }
        blocks[count] = &read->blocks[count];
        *blocks[count++] = (struct iocb){
            .aio_data = (uintptr_t)read,
            .aio_lio_opcode = IOCB_CMD_PREAD,
            .aio_rw_flags = RWF_NOWAIT, /* a full queue of the disk, or a lock, must not hold back the reader */
            .aio_fildes = (uint32_t)lane->segments[run->class].direct_fd,
            .aio_buf = (uintptr_t)to,
            .aio_nbytes = disk_length(run->length),
            .aio_offset = run->position,
        };
    }
    atomic_store(&read->error, 0);
    atomic_store(&read->runs_left, count);
    return count;
}

/* All runs are done. */
static void finish(struct lane *lane, struct disk_read *read, struct board_counters *counters) {
    const struct hit *hit = &read->hit;
    int error = atomic_load(&read->error);
    if (error) {
        hit_pass_on(lane, counters, hit, error == EAGAIN ? COUNTER_disk_busy : COUNTER_unreadable);
    } else if (!hit_is_unchanged(hit)) {
        hit_pass_on(lane, counters, hit, COUNTER_changed);
    } else if (take_from_disk(lane, hit->unique)) {
        board_count(counters, COUNTER_disk_reads, 1);
        COUNT(lane, disk_direct);
        hit_send(lane, counters, hit);
    }
    give_back(lane->disk, read);
}

/* `count` runs are done, in whatever way. */
static void runs_done(struct lane *lane, struct disk_read *read, uint32_t count, int error,
                      struct board_counters *counters) {
    if (error)
        atomic_store(&read->error, error);
    if (atomic_fetch_sub(&read->runs_left, count) == count)
        finish(lane, read, counters);
}

/* Nothing of a read was submitted. True: somebody has answered it already. */
static bool take_back(struct lane *lane, struct disk_read *read, int error) {
    if (error == EINVAL || error == EOPNOTSUPP) /* its file system cannot do it */
        for (uint32_t i = 0; i < read->hit.run_count; i++)
            if (read->runs[i].class != ZEROS)
                atomic_store(&lane->segments[read->runs[i].class].is_direct, false);
    bool is_ours = take_from_disk(lane, read->hit.unique);
    give_back(lane->disk, read);
    return !is_ours;
}

/* Read a hit past the page cache. False: it does not go, the reader has to wait for it. */
bool disk_takes(struct reader *self, const struct fuse_in_header *request) {
    struct lane *lane = self->lane;
    struct disk *disk = lane->disk;
    const struct hit *hit = &self->hit;
    if (!is_fit(lane, hit) || (!atomic_load(&disk->under_way) && atomic_load(&lane->crew.waiting) < WAITING_ALONE))
        return false;
    struct disk_read *read = take_free(disk);
    if (!read)
        return false;
    copy_hit(read, hit);
    if (!keep_on_disk(lane, request, hit->device)) {
        give_back(disk, read);
        return false;
    }
    struct iocb *blocks[MOST_RUNS];
    uint32_t count = prepare(lane, read, blocks);
    long submitted = syscall(SYS_io_submit, disk->context, (long)count, blocks);
    if (submitted <= 0)
        return take_back(lane, read, errno);
    if (submitted < (long)count)
        runs_done(lane, read, count - (uint32_t)submitted, EAGAIN, self->counters);
    return true;
}

/* ---- The finisher ---- */

static void take_event(struct finisher *self, const struct io_event *event) {
    struct disk_read *read = (void *)(uintptr_t)event->data;
    const struct iocb *block = (const void *)(uintptr_t)event->obj;
    int64_t result = event->res;
    int error = atomic_load(&read->error); /* acquires what the reader wrote: sanitizers do not see that the kernel did */
    if (result != (int64_t)block->aio_nbytes)
        error = result < 0 ? (int)-result : EIO;
    runs_done(self->lane, read, 1, error, self->counters);
}

static void *finisher_loop(void *argument) {
    struct finisher *self = argument;
    struct lane *lane = self->lane;
    struct disk *disk = lane->disk;
    struct io_event events[EVENTS];
    setpriority(PRIO_PROCESS, (id_t)gettid(), FINISHER_NICE); /* as the readers do */
    while (!atomic_load(&lane->stop) || atomic_load(&disk->under_way)) {
        long count = syscall(SYS_io_getevents, disk->context, 1L, (long)EVENTS, events, NULL);
        for (long i = 0; i < count; i++)
            take_event(self, &events[i]);
    }
    return NULL;
}

/* ---- Life ---- */

static void disk_free(struct disk *disk) {
    if (disk->context)
        syscall(SYS_io_destroy, disk->context);
    if (disk->buffers != MAP_FAILED)
        munmap(disk->buffers, (size_t)DISK_READS * BUFFER_BYTES);
    pthread_mutex_destroy(&disk->mutex);
    free(disk);
}

static bool set_up(struct disk *disk) {
    size_t size = (size_t)DISK_READS * BUFFER_BYTES;
    pthread_mutex_init(&disk->mutex, NULL);
    disk->buffers = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (disk->buffers == MAP_FAILED || madvise(disk->buffers, size, MADV_DONTFORK))
        return false;
    for (uint32_t i = 0; i < DISK_READS; i++) {
        disk->reads[i].hit.reply = disk->buffers + (size_t)i * BUFFER_BYTES + PAGE_SIZE;
        disk->reads[i].next_free = disk->free;
        disk->free = &disk->reads[i];
    }
    return kernel_tells_what_is_in_memory() &&
           syscall(SYS_io_setup, DISK_READS * MOST_RUNS, &disk->context) == 0;
}

/* Where the kernel does not have what it takes, nothing is started, and the crew waits for the disk. */
void disk_start(struct lane *lane) {
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk)
        return;
    bool is_set_up = set_up(disk);
    lane->disk = is_set_up ? disk : NULL;
    for (uint32_t i = 0; is_set_up && i < FINISHERS; i++) {
        struct finisher *self = &disk->finishers[i];
        *self = (struct finisher){.lane = lane, .counters = &lane->board->counters[BOARD_THREADS - 1 - i]};
        if (start_thread(&self->thread, finisher_loop, self))
            break;
        disk->finisher_count++;
    }
    if (!disk->finisher_count) {
        lane->disk = NULL;
        disk_free(disk);
    }
}

/* The crew has ended. False: the disk does not answer; then the kernel may still write into the buffers. */
bool disk_stop(struct lane *lane) {
    int tries = STOP_TRIES;
    if (!lane->disk)
        return true;
    for (struct disk *disk = lane->disk; disk->finisher_count; disk->finisher_count--)
        if (!end_thread(disk->finishers[disk->finisher_count - 1].thread, &tries))
            return false;
    disk_free(lane->disk);
    lane->disk = NULL;
    return true;
}
