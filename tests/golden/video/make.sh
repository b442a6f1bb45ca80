#!/bin/sh
# Makes the videos of this folder, and edge/sources/interlaced.mpg, with FFmpeg (tried: 9.0) from the
# project's root: tests/golden/video/make.sh [ffmpeg]
set -eu
f="${1:-ffmpeg} -nostdin -y -v error -fflags +bitexact"
out="-fflags +bitexact -flags:v +bitexact -map_metadata -1"
here=tests/golden/video
fields="+ildct+ilme"
moving="-f lavfi -t 2 -i testsrc=size=64x48:rate=10"

# Eight people of the demo's clip, 1.2 s, coded in fields.
$f -ss 6 -i demo/classroom.mp4 -frames:v 12 -an -vf fps=10,setfield=tff -c:v libx264 \
  -preset veryslow -crf 32 -x264-params interlaced=1 $out -flags:v $fields $here/interlaced.mkv
# The clock is set 55 years on, after a second.
$f $moving -vf "setpts='PTS+gte(N,10)*1764000000/TB'" -fps_mode passthrough -c:v libx264 -bf 0 $out \
  $here/clock-set.mkv
# Two seconds of picture, six of sound.
$f $moving -f lavfi -t 6 -i sine=sample_rate=16000 -c:v mpeg4 -c:a mp2 -b:a 8k $out $here/sound-longer.mkv
$f $moving -f lavfi -t 6 -i sine=sample_rate=16000 -c:v mpeg4 -c:a mp2 -b:a 8k $out $here/sound-longer.ts
$f $moving -f lavfi -t 6 -i sine=sample_rate=11025 -c:v flv -c:a libmp3lame -b:a 8k $out $here/sound-longer.flv
# Pictures that were dropped: 8 of 20.
$f $moving -vf "select='not(between(n,4,15))'" -fps_mode passthrough -c:v mpeg4 $out $here/dropped.avi
$f $moving -c:v libaom-av1 -cpu-used 8 -crf 50 $out $here/av1.mp4
ffmpeg_known="color=c=0xc82828:s=32x24[a];color=c=0x28c828:s=32x24[b];color=c=0x2828c8:s=32x24[c]"
$f -f lavfi -i "$ffmpeg_known;color=c=0xdcdcdc:s=32x24[d];[a][b]hstack[e];[c][d]hstack[f];[e][f]vstack,setfield=tff" \
  -frames:v 2 -c:v mpeg2video -q:v 2 -bf 0 $out -flags:v $fields edge/sources/interlaced.mpg
