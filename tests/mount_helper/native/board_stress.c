/*
 * A stress of board.h alone: one thread writes as a daemon does, others read as the lane does and compare every byte.
 *
 *      board_stress SECONDS SEED
 *
 * The bytes of slots lie in a real file, as in life: no thread reads memory that another one writes. Each block says which
 * chunk it is and how often it was written. A chunk is known by image and index alone, so that another image's table is
 * seen too. It ends with 1 when anybody got a wrong byte or a wrong record; sanitizers have codes of their own.
 *
 * -DWITHOUT_SECOND_LOOK, -DWITHOUT_IMAGE_LOOK: broken on purpose, to see that it is noticed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../../mount_helper/board.h"

#define SLOTS 6
#define SLOT_BYTES 4096
#define WORDS (SLOT_BYTES / 8)
#define INODES 3 /* which take turns at two numbers and one table each */
#define CHUNKS 4 /* of each image */
#define READERS 3
#define TABLE_BYTES BOARD_PAGE

static struct board *board;
static int board_fd, segment_fd;
static uint64_t inodes[INODES];
static atomic_bool stop, is_drained;
static atomic_ullong wrong, read_right, read_thrown_away, noted, drained;

struct thread {
    pthread_t thread;
    uint32_t number;
    uint64_t random;
};

static uint64_t next_random(uint64_t *state) { /* xorshift64 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void *say_wrong(const char *what) {
    atomic_fetch_add(&wrong, 1);
    fprintf(stderr, "wrong: %s\n", what);
    return NULL;
}

static uint64_t chunk_of(uint32_t image, uint32_t index) {
    return 1 + image * CHUNKS + index;
}

/* Chunks share words, so that half a tag is another chunk's half. */
static struct board_tag tag_of(uint64_t chunk) {
    return (struct board_tag){{100 + chunk / 2, 200 + chunk % 2 + chunk / 2}};
}

/* ---- The daemon ---- */

static void unset_image(uint32_t number) {
    struct board_image *entry = &board->images[number];
    unsigned generation = atomic_load_explicit(&entry->generation, memory_order_relaxed);
    if (generation & 1)
        atomic_store_explicit(&entry->generation, generation + 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
}

static void clear_table(uint64_t at) {
    if (fallocate(board_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(offsetof(struct board, tables) + at),
                  TABLE_BYTES) < 0)
        abort();
}

static void set_image(uint32_t number, uint64_t inode, uint64_t at) {
    struct board_image *entry = &board->images[number];
    unset_image(number);
    clear_table(at);
    atomic_store_explicit(&entry->inode, inode, memory_order_relaxed);
    atomic_store_explicit(&entry->size_bytes, CHUNKS * SLOT_BYTES, memory_order_relaxed);
    atomic_store_explicit(&entry->chunk_shift, 12, memory_order_relaxed);
    atomic_store_explicit(&entry->table_at, at, memory_order_relaxed);
    atomic_store_explicit(&entry->table_bytes, TABLE_BYTES, memory_order_relaxed);
    unsigned generation = atomic_load_explicit(&entry->generation, memory_order_relaxed);
    atomic_store_explicit(&entry->generation, generation + 1, memory_order_release);
}

static void publish(uint32_t image, uint32_t index, uint32_t slot) {
    struct board_view view;
    struct board_tag tag = tag_of(chunk_of(image, index));
    if (!board_find_image(board, inodes[image], &view))
        return;
    struct board_chunk *chunk = board_chunk(board, &view, index);
    atomic_store_explicit(&chunk->tag[0], tag.word[0], memory_order_release);
    atomic_store_explicit(&chunk->tag[1], tag.word[1], memory_order_release);
    atomic_store_explicit(&chunk->hint, slot + 1, memory_order_release);
}

static void write_slot(uint32_t slot, uint64_t chunk, uint64_t serial, size_t bytes) {
    uint64_t block[WORDS];
    for (int i = 0; i < WORDS; i++)
        block[i] = chunk << 48 | serial;
    if (pwrite(segment_fd, block, bytes, (off_t)slot * SLOT_BYTES) != (ssize_t)bytes)
        abort();
}

static void *daemon_loop(void *argument) {
    struct thread *self = argument;
    for (uint64_t serial = 1; !atomic_load_explicit(&stop, memory_order_relaxed); serial++) {
        uint64_t random = next_random(&self->random);
        uint32_t slot = random % SLOTS, image = (random >> 8) % INODES, index = (random >> 16) % CHUNKS;
        uint64_t chunk = chunk_of(image, index);
        if ((random >> 24) % 16 == 0) { /* another image gets the first table, or the second */
            uint32_t which = (random >> 32) & 1;
            uint32_t number = board_bucket(inodes[image]) * BOARD_WAYS + which;
            struct board_view view;
            if (!board_find_image(board, inodes[image], &view))
                set_image(number, inodes[image], (uint64_t)which * TABLE_BYTES);
        }
        board_empty(board_slot(board, slot));
        write_slot(slot, chunk, serial, (random >> 40) % 8 ? SLOT_BYTES : 512); /* what a dead fetcher leaves */
        if ((random >> 40) % 8 == 0)
            continue; /* not filled: the next one finds it empty, and empties it */
        board_fill(board_slot(board, slot), tag_of(chunk));
        publish(image, index, slot);
    }
    return NULL;
}

/* ---- The lane ---- */

static bool is_chunk(const uint64_t *block, uint64_t chunk) {
    for (int i = 0; i < WORDS; i++)
        if (block[i] != block[0] || block[i] >> 48 != chunk)
            return false;
    return true;
}

/* Between two looks a thread may stand still for as long as it likes. */
static void linger(uint64_t *random) {
    if (next_random(random) % 32 == 0)
        usleep(200);
}

/* 1: read and right; 0: thrown away; -1: wrong. */
static int read_chunk(uint32_t image, uint32_t index, uint64_t *random) {
    struct board_view view;
    uint64_t block[WORDS], generation;
    if (!board_find_image(board, inodes[image], &view))
        return 0;
    linger(random);
    struct board_chunk *chunk = board_chunk(board, &view, index);
    uint32_t hint = atomic_load_explicit(&chunk->hint, memory_order_acquire);
    struct board_tag tag = {{atomic_load_explicit(&chunk->tag[0], memory_order_acquire),
                             atomic_load_explicit(&chunk->tag[1], memory_order_acquire)}};
    struct board_slot *slot = hint ? board_slot(board, hint - 1) : NULL;
    if (!slot || !board_look(slot, tag, &generation))
        return 0;
#ifndef WITHOUT_IMAGE_LOOK
    if (!board_is_same(&view))
        return 0;
#endif
    linger(random);
    if (pread(segment_fd, block, sizeof block, (off_t)(hint - 1) * SLOT_BYTES) != sizeof block)
        return 0;
#ifndef WITHOUT_SECOND_LOOK
    if (!board_is_unchanged(slot, tag, generation))
        return 0;
#endif
    return is_chunk(block, chunk_of(image, index)) ? 1 : -1;
}

static void *reader_loop(void *argument) {
    struct thread *self = argument;
    struct board_counters *counters = &board->counters[self->number];
    for (uint64_t count = 1; !atomic_load_explicit(&stop, memory_order_relaxed); count++) {
        uint64_t random = next_random(&self->random);
        int result = read_chunk(random % INODES, (random >> 8) % CHUNKS, &self->random);
        if (result < 0)
            say_wrong("bytes");
        atomic_fetch_add(result ? &read_right : &read_thrown_away, 1);
        struct board_access access = {.at_ns = count, .inode = self->number, .offset = ~count, .by_lane = 1,
                                      .length = (uint32_t)count, .pid = (uint32_t)(count ^ self->number)};
        board_note(&board->ring, counters, &access);
        atomic_fetch_add(&noted, 1);
    }
    return NULL;
}

/* Drains as Board.drain does; sometimes it sleeps until the ring is full. */
static void *drain_loop(void *argument) {
    struct thread *self = argument;
    uint64_t last[READERS] = {0}, tail = 0;
    for (bool is_last = false; !is_last;) {
        is_last = atomic_load(&is_drained); /* nobody notes any more; look once again */
        if (!is_last && next_random(&self->random) % 64 == 0)
            usleep(300000);
        for (;;) {
            struct board_access *record = &board->ring.records[tail % BOARD_RING_RECORDS];
            if (atomic_load_explicit(&record->sequence, memory_order_acquire) != tail + 1)
                break;
            uint64_t count = record->at_ns, who = record->inode;
            bool is_whole = who < READERS && record->offset == ~count && record->length == (uint32_t)count &&
                            record->pid == (uint32_t)(count ^ who) && record->by_lane == 1;
            if (!is_whole || count <= last[who])
                return say_wrong("record");
            last[who] = count;
            tail++;
            atomic_store_explicit(&board->ring.tail, tail, memory_order_release);
        }
        usleep(1000);
    }
    atomic_store(&drained, tail);
    return NULL;
}

/* ---- */

/* A daemon that died in the middle of emptying has cleared the tag and counted nothing. */
static void check_half_emptied(void) {
    struct board_slot slot = {{1, 1}, 5};
    atomic_store(&slot.tag[0], 0);
    atomic_store(&slot.tag[1], 0);
    board_empty(&slot);
    if (atomic_load(&slot.generation) != 6)
        say_wrong("an emptying that was not counted");
}

static void set_up(void) {
    char path[] = "/tmp/board_stress.XXXXXX";
    segment_fd = mkstemp(path);
    board_fd = memfd_create("board", MFD_CLOEXEC);
    if (segment_fd < 0 || unlink(path) || board_fd < 0 || ftruncate(board_fd, (off_t)BOARD_BYTES) ||
        ftruncate(segment_fd, SLOTS * SLOT_BYTES))
        abort();
    board = mmap(NULL, BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, board_fd, 0);
    if (board == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    uint64_t inode = 2; /* inodes of one bucket */
    for (int found = 0; found < INODES; inode++)
        if (board_bucket(inode) == board_bucket(2))
            inodes[found++] = inode;
}

static void start(struct thread *thread, void *(*loop)(void *), uint32_t number, uint64_t seed) {
    thread->number = number;
    thread->random = seed * 0x9E3779B97F4A7C15ULL + number + 1;
    if (pthread_create(&thread->thread, NULL, loop, thread))
        abort();
}

int main(int count, char **arguments) {
    double seconds = count > 1 ? atof(arguments[1]) : 2;
    uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 10) : 1;
    struct thread daemon, drain, readers[READERS];
    check_half_emptied();
    set_up();
    start(&daemon, daemon_loop, 100, seed);
    start(&drain, drain_loop, 101, seed);
    for (uint32_t i = 0; i < READERS; i++)
        start(&readers[i], reader_loop, i, seed);
    usleep((useconds_t)(seconds * 1e6));
    atomic_store(&stop, true);
    pthread_join(daemon.thread, NULL);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i].thread, NULL);
    atomic_store(&is_drained, true);
    pthread_join(drain.thread, NULL);
    uint64_t dropped = 0;
    for (int i = 0; i < READERS; i++)
        dropped += atomic_load(&board->counters[i].value[COUNTER_accesses_dropped]);
    if (!atomic_load(&wrong) && atomic_load(&drained) + dropped != atomic_load(&noted))
        say_wrong("sum of the ring");
    if (!atomic_load(&read_right))
        say_wrong("nothing was read at all");
    printf("right %llu, thrown away %llu, drained %llu, dropped %llu\n", (unsigned long long)read_right,
           (unsigned long long)read_thrown_away, (unsigned long long)drained, (unsigned long long)dropped);
    munmap(board, BOARD_BYTES);
    close(board_fd);
    close(segment_fd);
    return atomic_load(&wrong) != 0;
}
