/*
 * The board: memory that the lane and the daemons of a mount share. It outlives every daemon.
 *
 * The daemon writes on it what L1 holds, and the lane answers reads from that; the lane writes on it what was read, and
 * the daemon learns from that. This file is the one definition of its layout and of the protocol, for both sides and for
 * the tests; Python sees it through board.c.
 *
 *      header     what this is; the daemon's heartbeat; the segment files that the lane has open; the ring's ends
 *      counters   one block for each thread of the lane
 *      ring       the accesses, newest last
 *      images     which images (by inode) have a table, and where
 *      slots      what each slot of L1 holds: half of a chunk id (the tag), and how often the slot was emptied
 *      tables     for each chunk of an image its tag, and a hint: the slot where it may be
 *
 * Most of it is never touched and takes no memory: it is a sparse file of 70 GiB.
 *
 *
 * THE PROTOCOL OF SLOTS. It keeps one promise: a slot whose tag is T, at a time when its generation is g, has held the
 * bytes of chunk T ever since its generation became g.
 *
 *      fill:   (the tag is 0)  write the bytes;             tag = T                   board_fill
 *      empty:  tag = 0; generation + 1;                     then the slot may be used again, or punched   board_empty
 *      read:   g = generation; is the tag T?  read the bytes;  is the tag still T, the generation still g?
 *              If not, the bytes are thrown away.           board_look, board_is_unchanged
 *
 * One daemon writes, many threads read, and nobody waits for anybody. Why the order holds:
 *  - fill: the bytes are written by another process, which then tells the daemon through a socket; the tag follows with
 *    release. Who loads the tag with acquire and then reads the file sees those bytes.
 *  - empty: the tag is gone and the generation counted (both release) before anybody is told through a socket that he
 *    may write there. So a reader that gets even one byte of what came later finds, after an acquire fence, a tag or a
 *    generation that is not what it was.
 *  - A tag is two words, and a reader may see one of the old and one of the new. Then it differs from T, or the
 *    generation has moved between the reader's two looks.
 * A daemon that dies leaves slots it was filling with the tag 0: nobody reads them. The next daemon empties a slot before
 * it gives it to anybody, so it need not know what its predecessor had done.
 *
 * THE PROTOCOL OF IMAGES is a seqlock: generation is odd while the entry and its table are valid; a reader copies what it
 * needs and looks again. The memory of a table that is gone may belong to another image; the second look tells.
 *
 * A HINT is no promise: it only says where to look. A wrong one costs a detour through the daemon.
 */
#ifndef CACHEFS_BOARD_H
#define CACHEFS_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BOARD_MAGIC "CACHEFSB"
#define BOARD_VERSION 1
#define BOARD_CLASSES 11          /* of slots: 4 KiB to 4 MiB */
#define BOARD_CLASS_SLOTS (1u << 24) /* of each class; what L1 holds beyond that is the daemon's to answer */
#define BOARD_INDEX_BITS 28       /* a slot number is class << 28 | index */
#define BOARD_SMALLEST_SHIFT 12   /* slots of class 0 have 1 << 12 bytes */
#define BOARD_BUCKETS 512
#define BOARD_WAYS 16
#define BOARD_IMAGES (BOARD_BUCKETS * BOARD_WAYS)
#define BOARD_TABLES_BYTES (64ULL << 30)
#define BOARD_RING_RECORDS (1u << 16)
#define BOARD_THREADS 64
#define BOARD_LATENCIES 32 /* bucket b: 2^b to 2^(b+1) ns */
#define BOARD_PAGE 4096

/* What the lane counts about reads, in the blocks of its threads. */
#define BOARD_COUNTERS(X)                                                                                              \
    X(hits)               /* reads answered from L1 by the lane */                                                     \
    X(hit_bytes)                                                                                                       \
    X(hit_chunks)                                                                                                      \
    X(zero_chunks)        /* chunks of zeros in those reads */                                                         \
    X(disk_reads)         /* hits that had to wait for the disk */                                                     \
    X(passed_reads)       /* reads passed on to the daemon, for one of these reasons: */                               \
    X(unknown_image)      /* no table of the image */                                                                  \
    X(unknown_chunk)      /* no hint */                                                                                \
    X(moved)              /* the hinted slot does not hold the chunk (any more) */                                     \
    X(changed)            /* the slot was emptied while it was read */                                                 \
    X(unreadable)         /* the segment file could not be read */                                                     \
    X(disk_busy)          /* too many threads wait for the disk */                                                     \
    X(accesses_dropped)   /* the ring was full */

enum board_counter {
#define X(name) COUNTER_##name,
    BOARD_COUNTERS(X)
#undef X
        COUNTERS
};

struct board_counters {
    atomic_ullong value[COUNTERS];
    atomic_ullong latency[BOARD_LATENCIES]; /* of hits, from the request's arrival in the lane to the end of its reply */
    unsigned char padding[64];              /* blocks of two threads share no cache line */
};

/* One read, as the policy sees it. */
struct board_access {
    atomic_ullong sequence; /* position in the ring + 1, when the record is complete */
    uint64_t at_ns;         /* CLOCK_MONOTONIC */
    uint64_t inode;
    uint64_t offset;
    uint32_t length;
    uint32_t pid;
    uint32_t by_lane; /* 1: answered by the lane, 0: passed on */
    uint32_t unused;
};

struct board_ring {
    _Alignas(64) atomic_ullong head; /* producers: the next position to take */
    _Alignas(64) atomic_ullong tail; /* the daemon: the next position to read */
    struct board_access records[BOARD_RING_RECORDS];
};

struct board_image {
    atomic_uint generation; /* odd: valid */
    atomic_uint chunk_shift;
    atomic_ullong inode; /* 0: never used */
    atomic_ullong size_bytes;
    atomic_ullong table_at;    /* from the beginning of the tables */
    atomic_ullong table_bytes; /* 0: it has none, and its reads are all passed on */
    atomic_ullong holds;       /* its readers wait for the store for as long as it takes; no part of what is valid together */
    atomic_ullong unused[2];
};

struct board_slot {
    atomic_ullong tag[2]; /* 0, 0: empty */
    atomic_ullong generation;
};

/* A chunk of an image. All 0: nothing is known of it. */
struct board_chunk {
    atomic_ullong tag[2];
    atomic_uint hint; /* slot number + 1; 0: unknown */
    uint32_t unused;
};

#define BOARD_ZERO_TAG UINT64_MAX /* both words: a chunk of zeros, which has no slot */

struct board_segment {
    atomic_ullong device, inode; /* of the file that the lane reads slots of this class from; 0, 0: none */
};

struct board {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t board_bytes;
    _Alignas(64) atomic_ullong beats; /* the daemon counts up while its event loop runs */
    _Alignas(64) struct board_segment segments[BOARD_CLASSES];
    _Alignas(BOARD_PAGE) struct board_counters counters[BOARD_THREADS];
    _Alignas(BOARD_PAGE) struct board_ring ring;
    _Alignas(BOARD_PAGE) struct board_image images[BOARD_IMAGES];
    _Alignas(BOARD_PAGE) struct board_slot slots[BOARD_CLASSES][BOARD_CLASS_SLOTS];
    _Alignas(BOARD_PAGE) unsigned char tables[BOARD_TABLES_BYTES];
};

#define BOARD_BYTES sizeof(struct board)

static inline bool board_is_ours(const struct board *board) {
    return !memcmp(board->magic, BOARD_MAGIC, sizeof board->magic) && board->version == BOARD_VERSION &&
           board->header_bytes == offsetof(struct board, counters) && board->board_bytes == BOARD_BYTES;
}

/* ---- Slots ---- */

/* The first half of a chunk id. All zeros and all ones have a meaning of their own, and become something else. */
struct board_tag {
    uint64_t word[2];
};

static inline struct board_tag board_tag_of(const unsigned char id[16]) {
    struct board_tag tag;
    memcpy(&tag, id, sizeof tag);
    if (tag.word[0] == tag.word[1] && (tag.word[0] == 0 || tag.word[0] == BOARD_ZERO_TAG))
        tag.word[0] = 1;
    return tag;
}

/* The place of a slot on the board, NULL if it has none. */
static inline struct board_slot *board_slot(struct board *board, uint32_t number) {
    uint32_t class = number >> BOARD_INDEX_BITS, index = number & ((1u << BOARD_INDEX_BITS) - 1);
    return class < BOARD_CLASSES && index < BOARD_CLASS_SLOTS ? &board->slots[class][index] : NULL;
}

static inline bool board_holds(struct board_slot *slot, struct board_tag tag) {
    return atomic_load_explicit(&slot->tag[0], memory_order_acquire) == tag.word[0] &&
           atomic_load_explicit(&slot->tag[1], memory_order_acquire) == tag.word[1];
}

/* Writer. The bytes are there and were verified; the slot is empty, or says the same already. */
static inline void board_fill(struct board_slot *slot, struct board_tag tag) {
    atomic_store_explicit(&slot->tag[0], tag.word[0], memory_order_release);
    atomic_store_explicit(&slot->tag[1], tag.word[1], memory_order_release);
}

/*
 * Writer. To be called before the slot's bytes may change, in whatever way. It counts also when the tag is 0 already: a
 * daemon that died in the middle of this had cleared the tag and counted nothing.
 */
static inline void board_empty(struct board_slot *slot) {
    uint64_t generation = atomic_load_explicit(&slot->generation, memory_order_relaxed);
    atomic_store_explicit(&slot->tag[0], 0, memory_order_release);
    atomic_store_explicit(&slot->tag[1], 0, memory_order_release);
    atomic_store_explicit(&slot->generation, generation + 1, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst); /* before whatever comes next, without a look at what that is */
}

/* Reader, before it reads: does the slot hold this chunk? Then the generation is kept for the second look. */
static inline bool board_look(struct board_slot *slot, struct board_tag tag, uint64_t *generation) {
    *generation = atomic_load_explicit(&slot->generation, memory_order_acquire);
    return board_holds(slot, tag);
}

/* Reader, after it has read. */
static inline bool board_is_unchanged(struct board_slot *slot, struct board_tag tag, uint64_t generation) {
    atomic_thread_fence(memory_order_acquire);
    return board_holds(slot, tag) && atomic_load_explicit(&slot->generation, memory_order_acquire) == generation;
}

/* ---- Images ---- */

static inline uint32_t board_bucket(uint64_t inode) {
    return (uint32_t)((inode * 0x9E3779B97F4A7C15ULL) >> 55); /* Fibonacci hashing, the upper 9 bits */
}
_Static_assert(BOARD_BUCKETS == 1 << 9, "board_bucket takes 9 bits");

/* A copy of an image's entry. */
struct board_view {
    struct board_image *entry;
    uint32_t number; /* of the entry; for messages */
    uint32_t generation, chunk_shift;
    uint64_t size_bytes, table_at, table_bytes;
    bool holds;
};

static inline bool board_is_same(const struct board_view *view) {
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&view->entry->generation, memory_order_relaxed) == view->generation;
}

/* Find an image by its inode. The view can be believed; its table only if board_is_same after it was read. */
static inline bool board_find_image(struct board *board, uint64_t inode, struct board_view *view) {
    uint32_t first = board_bucket(inode) * BOARD_WAYS;
    for (uint32_t number = first; number < first + BOARD_WAYS; number++) {
        struct board_image *entry = &board->images[number];
        if (atomic_load_explicit(&entry->inode, memory_order_relaxed) != inode)
            continue;
        view->entry = entry;
        view->number = number;
        view->generation = atomic_load_explicit(&entry->generation, memory_order_acquire);
        view->chunk_shift = atomic_load_explicit(&entry->chunk_shift, memory_order_relaxed);
        view->size_bytes = atomic_load_explicit(&entry->size_bytes, memory_order_relaxed);
        view->table_at = atomic_load_explicit(&entry->table_at, memory_order_relaxed);
        view->table_bytes = atomic_load_explicit(&entry->table_bytes, memory_order_relaxed);
        view->holds = atomic_load_explicit(&entry->holds, memory_order_relaxed);
        bool is_it = atomic_load_explicit(&entry->inode, memory_order_relaxed) == inode;
        if (is_it && view->generation & 1 && board_is_same(view))
            return true;
    }
    return false;
}

/* The place of a chunk in a table; within the table, whatever the view says. */
static inline struct board_chunk *board_chunk(struct board *board, const struct board_view *view, uint64_t index) {
    if (view->table_bytes > BOARD_TABLES_BYTES || view->table_at > BOARD_TABLES_BYTES - view->table_bytes ||
        index >= view->table_bytes / sizeof(struct board_chunk))
        return NULL;
    return (struct board_chunk *)(board->tables + view->table_at + index * sizeof(struct board_chunk));
}

/* ---- The ring: many producers, one consumer ---- */

static inline void board_count(struct board_counters *counters, enum board_counter counter, uint64_t amount) {
    /* Only this thread writes here: no need for a locked addition. */
    uint64_t value = atomic_load_explicit(&counters->value[counter], memory_order_relaxed);
    atomic_store_explicit(&counters->value[counter], value + amount, memory_order_relaxed);
}

/* Take a place, fill it, say that it is complete. A full ring drops. */
static inline void board_note(struct board_ring *ring, struct board_counters *counters, const struct board_access *access) {
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    do {
        if (head - atomic_load_explicit(&ring->tail, memory_order_acquire) >= BOARD_RING_RECORDS) {
            board_count(counters, COUNTER_accesses_dropped, 1);
            return;
        }
    } while (!atomic_compare_exchange_weak_explicit(&ring->head, &head, head + 1, memory_order_relaxed,
                                                    memory_order_relaxed));
    struct board_access *record = &ring->records[head % BOARD_RING_RECORDS];
    record->at_ns = access->at_ns;
    record->inode = access->inode;
    record->offset = access->offset;
    record->length = access->length;
    record->pid = access->pid;
    record->by_lane = access->by_lane;
    atomic_store_explicit(&record->sequence, head + 1, memory_order_release);
}

#endif
