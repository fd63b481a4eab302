// Reads one JSON job a line ({style, options}) from stdin, writes one SVG a line (as a JSON string) to stdout.
import { createInterface } from 'node:readline';
import { createAvatar } from '@dicebear/core';
import * as styles from '@dicebear/collection';

for await (const line of createInterface({ input: process.stdin })) {
  const { style, options } = JSON.parse(line);
  process.stdout.write(JSON.stringify(createAvatar(styles[style], options).toString()) + '\n');
}
