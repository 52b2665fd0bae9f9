/* A read that is a hit, from its look-up to its reply; shared by hits.c, crew.c and disk.c. */
#ifndef CACHEFS_HITS_H
#define CACHEFS_HITS_H

#include "lane.h"

#include <sys/types.h>

#define MAX_CHUNKS (MAX_READ / 4096 + 1) /* that one read can touch */
#define FOUND COUNTERS                   /* no reason to pass a read on */
#define CALM_REQUESTS 256                /* from memory, after which a reader takes the next one for such a one, too */
#define DISK_BLOCK 4096                  /* what O_DIRECT wants at most: places and lengths are multiples of it */
#define ZEROS -1                         /* a run of zeros is in no segment file */

/* A chunk that a read needs, as it was found; looked at again after it has been read. */
struct found_chunk {
    struct board_slot *slot;
    struct board_tag tag;
    uint64_t generation;
};

/* Bytes that lie side by side in the segment file of a class (or are zeros), and where in the reply they go. */
struct run {
    int class;
    uint32_t at, length;
    off_t position;
};

struct hit {
    uint64_t unique, came_ns;
    uint32_t device, length;
    uint32_t chunk_count, zero_count, run_count;
    struct found_chunk *chunks;
    struct run *runs;
    unsigned char *reply; /* begins a page; before it is room for the header */
};

/* A thread of the crew. */
struct reader {
    struct lane *lane;
    pthread_t thread;
    uint32_t device;
    uint32_t calm; /* requests since it last met a hit that was not in memory */
    struct board_counters *counters;
    unsigned char *request; /* REQUEST_SIZE */
    unsigned char *pages;   /* where the hit's reply is */
    struct hit hit;         /* the read that it has in its hands, with the two arrays */
    struct found_chunk chunks[MAX_CHUNKS];
    struct run runs[MAX_CHUNKS];
};

uint64_t precise_ns(void);

/* hits.c */
bool serve_read(struct reader *self, const struct fuse_in_header *request);
bool hit_is_unchanged(const struct hit *hit);
void hit_send(struct lane *lane, struct board_counters *counters, const struct hit *hit);
void hit_pass_on(struct lane *lane, struct board_counters *counters, const struct hit *hit, enum board_counter reason);

/* crew.c */
bool leave_place(struct lane *lane);
void take_place(struct lane *lane);

/* disk.c */
static inline uint32_t disk_length(uint32_t length) { /* slots are multiples of it, too */
    return (length + DISK_BLOCK - 1) / DISK_BLOCK * DISK_BLOCK;
}
bool disk_is_better(struct lane *lane, const struct hit *hit);
bool disk_takes(struct reader *self, const struct fuse_in_header *request);

#endif
